"""The feature bank, feature extraction and the linear probe."""
