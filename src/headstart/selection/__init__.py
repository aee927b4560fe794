"""Choose a backbone for a data set: candidates, nested cross-validation of a probe, speed, page."""
