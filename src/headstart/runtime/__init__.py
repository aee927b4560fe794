"""The machine: devices, processes, precision, cores and memory, signals."""
