"""A finished model for somebody else's program: one module per format, and one gate that each result has to pass."""
