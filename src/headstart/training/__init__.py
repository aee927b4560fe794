"""The training loop, the assembly of a run, checkpoints, trackers and repeated runs."""
