"""Checks and benchmarks of this machine and of a model file."""
