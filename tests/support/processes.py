"""Processes that run headstart commands and start fast: each is forked from a server that has imported the packages.

A test needs a process of its own where the process is killed, gets a signal, or is one of several of a run. Importing
torch in every such process takes longer than all that the test does with it.
"""

import atexit
import contextlib
import errno
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_CONTEXT: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
_PRELOADED = [  # what a run imports, at the start or later
    "headstart.cli.main",
    "headstart.training.run",
    "headstart.training.train_network",
    "headstart.training.train_head",
    "headstart.training.repeats",
    "headstart.selection.command",
    "headstart.selection.page",
    "headstart.model.gradcam",
    "headstart.report.command",
    "headstart.report.image_grid",
    "torch.distributed.run",
    "attr",
    "jinja2",
    "scipy.special",
    "rich.live",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
]
for _name in _PRELOADED:  # the server itself passes over names that do not exist
    assert not _name.startswith("headstart") or find_spec(_name), f"{_name} is not a module any more"
if _FORKS:
    _CONTEXT.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True)
class Finished:
    """As of subprocess: a negative return code is the number of a signal."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    """A process that calls `work(*arguments)` in the folder `cwd`; `work` is a function of a module."""

    def __init__(
        self, work: Callable[..., object], *arguments: Any, cwd: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._outputs = Path(tempfile.mkdtemp(prefix="outputs-", dir=cwd))
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        call = (work, arguments, str(cwd), variables, str(self._outputs))
        self._process = _CONTEXT.Process(target=_call, args=call)
        self._process.start()
        self.pid: int = self._process.pid

    def is_running(self) -> bool:
        return bool(self._process.is_alive())

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def family(self) -> list[psutil.Process]:
        """Its children, and theirs."""
        return psutil.Process(self.pid).children(recursive=True)

    def wait_until(self, reached: Callable[[], object], *, timeout_s: float = 120) -> None:
        """Returns as soon as something is reached. Fails if the process ends before."""
        give_up = time.monotonic() + timeout_s
        while not reached():
            assert self.is_running(), self.finish()
            assert time.monotonic() < give_up, self.kill()
            time.sleep(0.005)

    def finish(self, *, timeout_s: float = 180) -> Finished:
        """Waits for its end. Fails, and leaves no process behind, if that does not come."""
        self._process.join(timeout_s)
        if self.is_running():
            raise AssertionError(f"still running after {timeout_s} s: {self.kill()}")
        stdout, stderr = (
            (self._outputs / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")
        )
        return Finished(self._process.exitcode, stdout, stderr)

    def kill(self) -> Finished:
        """With all its children."""
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            for process in [*self.family(), psutil.Process(self.pid)]:
                process.kill()
        return self.finish()


def _call(
    work: Callable[..., object], arguments: tuple[Any, ...], cwd: str, variables: dict[str, str], outputs: str
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{outputs}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    work(*arguments)


def headstart(*arguments: str) -> None:
    """What `headstart ARGUMENTS` does."""
    from headstart.cli.main import main

    try:
        main([str(argument) for argument in arguments])
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them


def _break_the_file(_: str) -> None:
    raise OSError(errno.EIO, "Input/output error")


def _fail(_: str) -> None:
    raise RuntimeError("sabotage")


FAULTS: dict[str, Callable[[str], None]] = {
    "stop": lambda _: os.kill(os.getpid(), signal.SIGTERM),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "unreadable": _break_the_file,
    "error": _fail,
}


def headstart_with_fault(fault: str, nth: int, path: str, rank: int, *arguments: str) -> None:
    """Like `headstart`, and the process of this rank suffers one of FAULTS when it opens `path`, or a file below it,
    for the n-th time, counted from 1. What the scan of the images opens does not count. With --data.cache off an
    image is opened each time that it is used."""
    opened = 0

    def count(name: str) -> None:
        nonlocal opened
        opened += 1
        if opened == nth:
            FAULTS[fault](name)

    if _this_rank() == rank:
        _watch(path, count)
    headstart(*arguments)


def headstart_recording_images(root: str, *arguments: str) -> None:
    """Like `headstart`, but each process writes the images that it opened after the scan to opened-RANK.json."""
    opened: list[str] = []
    _watch(root, opened.append)
    try:
        headstart(*arguments)
    finally:
        Path(f"opened-{_this_rank()}.json").write_text(json.dumps(opened))


def _watch(path: str, seen: Callable[[str], None]) -> None:
    """Call `seen` with the name of each file at or below `path`, just before it is opened; what `seen` raises is
    raised there."""
    scanned = _this_rank() != 0 or not os.path.isdir(path)  # one process scans, before it writes the manifest

    def watch(event: str, values: tuple[Any, ...]) -> None:
        nonlocal scanned
        if event != "open" or not isinstance(values[0], str | os.PathLike):
            return
        name = os.fspath(values[0])
        scanned = scanned or ".manifest.parquet." in name
        if scanned and (name == path or name.startswith(f"{path}/")):
            seen(name)

    sys.addaudithook(watch)


def _this_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def torchrun(processes: int, *arguments: object, cwd: Path, work: Callable[..., object] = headstart) -> Started:
    """What `torchrun --standalone --nproc_per_node PROCESSES -m headstart ARGUMENTS` starts: torch's agent, and
    processes that call `work` with the arguments. Each leaves its number in cwd/RANK.pid."""
    return Started(_agent, processes, work, arguments, cwd=cwd, environment={"ACCELERATE_USE_CPU": "true"})


def pid_of(rank: int, folder: Path) -> int:
    return int((folder / f"{rank}.pid").read_text())


def _agent(processes: int, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork" if _FORKS else "spawn",
    )
    elastic_launch(config, entrypoint=_rank)(work, arguments)


def _rank(work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    Path(f"{_this_rank()}.pid").write_text(str(os.getpid()))
    try:
        work(*arguments)
    except SystemExit as end:
        if end.code:  # the agent expects a function that returns
            raise
