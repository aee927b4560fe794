"""How many cores there are to use. Knows no torch."""

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores this process may run on: the affinity mask, and the container's quota where it sets one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # not Linux, or no cgroup v2
    return cores
