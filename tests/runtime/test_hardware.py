"""The load that other processes put on this machine."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from headstart.runtime import hardware
from headstart.runtime.hardware import WORKER_BYTES, LoadOfOthers, bounded_workers


@pytest.mark.parametrize(
    ("others", "cores", "threads", "advised"),
    [
        (1.0, 2, 2, "--runtime.threads 1"),
        (2.0, 2, 2, "--runtime.threads 1"),
        (2.6, 8, 8, "--runtime.threads 5"),
        (0.3, 2, 2, ""),  # little
        (4.0, 8, 4, ""),  # enough is left
        (1.0, 2, 1, ""),  # as few as possible
    ],
)
def test_a_busy_machine_is_reported_with_the_threads_that_are_left(others, cores, threads, advised, monkeypatch):
    monkeypatch.setattr(hardware, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    clock, busy, own = [0.0], [0.0], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "process_time", lambda: own[0])
    # a core that this process may not use, and work that gives way, do not count
    core = lambda: SimpleNamespace(user=busy[0] / cores, system=0.0, nice=1e9)  # noqa: E731
    foreign = SimpleNamespace(user=1e9, system=1e9, nice=0.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [*(core() for _ in range(cores)), foreign])
    load = LoadOfOthers()
    clock[0], own[0] = 4.0, 4.0 * 0.9
    busy[0] = own[0] + 4.0 * others
    assert load.cores() == pytest.approx(others)
    found = load.advice(threads=threads)
    assert (advised in found) if advised else not found
    if advised:
        assert f"{others:.1f} of {cores} cores" in found
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert not load.advice(threads=threads)


def test_a_sample_that_is_too_short_says_nothing() -> None:
    assert LoadOfOthers().cores() == 0.0


@pytest.mark.slow
def test_a_process_that_works_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            load = LoadOfOthers()
            time.sleep(1)
            assert load.cores() > 0.2
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("asked", "cores", "free", "processes", "started"),
    [
        (0, 2, 2**40, 1, 0),
        (3, 2, 2**40, 1, 3),
        (999, 2, 2**40, 1, 8),
        (999, 16, 2**40, 4, 16),
        (999, 64, 20 * WORKER_BYTES, 1, 10),
        (999, 64, 20 * WORKER_BYTES, 2, 5),
        (2, 2, 0, 1, 1),
    ],
)
def test_worker_processes_are_bounded_by_cores_and_memory(asked, cores, free, processes, started, monkeypatch):
    monkeypatch.setattr(hardware, "usable_cores", lambda: cores)
    monkeypatch.setattr(hardware, "free_memory", lambda: free)
    monkeypatch.setattr(hardware, "local_processes", lambda: processes)
    assert bounded_workers(asked) == started


def test_free_memory_is_within_the_limit_of_the_process():
    code = (
        "import resource, psutil; from headstart.runtime.hardware import free_memory; "
        "limit = psutil.Process().memory_info().vms + 2**28; resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); "
        "print(free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert 0 < int(done.stdout) <= 2**28, done.stderr
