"""Cores, memory and disk that this process may use. Knows no torch."""

import os
import shutil
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use, from its affinity mask and the CPU quota of the container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # not Linux, or no cgroup v2
    return cores


def local_processes() -> int:
    """Processes of this run on this machine, from LOCAL_WORLD_SIZE, which launchers set."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores_per_process() -> int:
    """Usable cores for each process of this run on this machine, at least 1."""
    return max(1, usable_cores() // local_processes())


def free_memory() -> int:
    """Bytes that this process can allocate without swapping, within the memory limit of the container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")
        if limit != "max":
            free = min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass  # not Linux, or no cgroup v2
    return free


def free_shared_memory() -> int:
    """Bytes free in /dev/shm, where torch shares tensors between processes; free memory if there is no /dev/shm."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return free_memory()


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
