"""What a launcher such as torchrun tells this process through its environment. Knows no torch."""

import os


def is_first_process() -> bool:
    """Whether this is the process that prints: the first of all, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def num_processes() -> int:
    """Number of processes of this run on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))
