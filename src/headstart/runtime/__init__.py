"""Devices, cores, memory, precision, processes and signals of a run."""
