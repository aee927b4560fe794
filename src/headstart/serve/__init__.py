"""`headstart serve`: a page and an HTTP API for a finished model."""
