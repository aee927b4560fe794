"""Several runs at once, one per GPU, each a process of its own. Started only where one process sees several GPUs."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.errors import InputError, Stopped
from headstart.messages import LOG
from headstart.runs.lock import resume_command
from headstart.runtime.signals import StopRequest

PATIENCE_S = 120.0  # for a run that was asked to stop to save itself
_POLL_S = 0.2


@dataclass
class _Running:
    """A run that was started. reader: logs its stdout; errors: a file with its stderr."""

    name: str
    gpu: str
    process: subprocess.Popen[str]
    reader: threading.Thread
    errors: Path


def usable_gpus(device: torch.device) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name: as it is set, else all; nothing if the run is on no GPU."""
    if device.type != "cuda":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [part.strip() for part in named.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


def run_on_gpus(configs: Mapping[str, RunConfig], gpus: Sequence[str]) -> None:
    """Run all, at most one per GPU at a time; their lines come with the name of the run before them.

    If one fails the others are asked to stop, which saves them. Raises InputError with its message, or Stopped.
    """
    waiting, free = list(configs), list(gpus)
    running: list[_Running] = []
    failed: tuple[str, int, str] | None = None
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder, StopRequest() as stop:
        try:
            while running or (waiting and failed is None and stop.signal_name is None):
                while waiting and free and failed is None and stop.signal_name is None:
                    name = waiting.pop(0)
                    running.append(_start(name, configs[name], free.pop(0), Path(folder), at_once=len(gpus)))
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    free.append(child.gpu)
                    child.reader.join()
                    if child.process.returncode and failed is None:
                        complaints = child.errors.read_text(encoding="utf-8", errors="replace").rstrip("\n")
                        failed = child.name, child.process.returncode, complaints
                if failed is not None or stop.signal_name is not None:
                    _stop(running)
                time.sleep(_POLL_S)
        finally:
            _stop(running)  # an exception here must not leave them behind
    if stop.signal_name is not None:
        command = resume_command(Path(next(iter(configs.values())).out))
        raise Stopped(
            f"stopped by {stop.signal_name}, and every run is saved; to continue: {command}",
            signal_name=stop.signal_name,
        )
    if failed is not None:
        name, code, complaints = failed
        if code == 143:
            raise Stopped(f"{name}: {complaints.removeprefix('headstart: ')}")
        raise InputError(f"{name} ended with code {code}: {complaints.removeprefix('headstart: ')}")


def _start(name: str, config: RunConfig, gpu: str, folder: Path, *, at_once: int) -> _Running:
    """at_once: so many share the cores and the memory of this machine, as processes of one run would."""
    path, errors = folder / f"{name}.yaml", folder / f"{name}.stderr"
    path.write_text(to_yaml(config), encoding="utf-8")
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "headstart", "train", "--config", str(path)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "LOCAL_WORLD_SIZE": str(at_once)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for us, who hand it on once
        )
    LOG.info(f"{name}: on GPU {gpu}")
    assert process.stdout is not None
    reader = threading.Thread(target=_log, args=(name, process.stdout), daemon=True)
    reader.start()
    return _Running(name, gpu, process, reader, errors)


def _log(name: str, lines: TextIO) -> None:
    with lines:
        for line in lines:
            LOG.info(f"{name}: {line.rstrip(chr(10))}")


def _stop(running: Sequence[_Running]) -> None:
    """Ask all to save and end, and end those that do not."""
    for child in running:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + PATIENCE_S
    for child in running:
        try:
            child.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
