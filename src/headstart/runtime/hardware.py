"""Cores, memory and disk that this process may use. Knows no torch."""

import os
import shutil
import time
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SHORTEST_SAMPLE_S = 0.1  # the clock of the system counts hundredths of a second
BUSY_CORES = 0.5
MOST_WORKERS_PER_CORE = 4  # more help only if they wait for a network
WORKER_BYTES = 100 * 2**20  # about what a forked process with torch takes for itself


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


def bounded_workers(asked: int) -> int:
    """The number of worker processes to start where `asked` are: at most MOST_WORKERS_PER_CORE for each usable core,
    and together at most half of the free memory."""
    by_memory = free_memory() // 2 // WORKER_BYTES // local_processes()
    return min(asked, max(1, min(MOST_WORKERS_PER_CORE * cores_per_process(), by_memory)))


class LoadOfOthers:
    """The cores that other processes use, from its construction to `cores`: nothing waits for a sample."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds: of the clock, of work on the usable cores, of the work of this process."""
        import psutil

        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        busy = 0.0
        for number, core in enumerate(psutil.cpu_times(percpu=True)):
            if usable is None or number in usable:
                busy += core.user + core.system  # niced work, in a field of its own, gives way
        return time.perf_counter(), busy, time.process_time()

    def cores(self) -> float:
        began, busy, own = self._before
        clock, busy_now, own_now = self._now()
        if clock - began < SHORTEST_SAMPLE_S:
            return 0.0
        return max(0.0, (busy_now - busy - (own_now - own)) / (clock - began))

    def advice(self, *, threads: int) -> str:
        """One sentence if other processes leave fewer cores than this process has threads; empty otherwise, and where
        several processes of a run would count as others."""
        if local_processes() > 1:
            return ""
        total, others = usable_cores(), self.cores()
        free = max(1, round(total - others))
        if others < BUSY_CORES or free >= threads:
            return ""
        return (
            f"other processes use {others:.1f} of {total} cores; threads that wait for a shared core slow down the "
            f"others, so --runtime.threads {free} may be faster"
        )


def free_memory() -> int:
    """Bytes that this process can allocate without swapping, within the memory limits of the container and of the
    process (ulimit -v)."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")
        if limit != "max":
            free = min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass  # not Linux, or no cgroup v2
    if resource is not None:
        limit_of_process, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit_of_process != resource.RLIM_INFINITY:
            free = min(free, max(0, limit_of_process - int(psutil.Process().memory_info().vms)))
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
