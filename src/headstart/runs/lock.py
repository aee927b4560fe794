"""Whether a run is in progress, from running.json and the other files of its folder. Knows no torch."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import yaml

from headstart.files import write_text

RUNNING = "running.json"


class RunLock:
    """running.json in the run folder, with the process that writes there. It is removed by `release`, or when an error
    leaves the `with` block. If the process is killed, the file stays, but no process has its number and start time."""

    def __init__(self, folder: Path | None) -> None:
        """None: does nothing, for processes that do not write."""
        self._path = None if folder is None else folder / RUNNING
        if self._path is not None:
            process = psutil.Process()
            owner = {"pid": process.pid, "host": socket.gethostname(), "since": process.create_time()}
            write_text(self._path, json.dumps(owner) + "\n")

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.release()

    def release(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def is_over(path: Path) -> bool:
    """Whether no process writes there any more. False if this machine cannot know."""
    try:
        owner = json.loads((path / RUNNING).read_text())
    except FileNotFoundError:
        return has_begun(path) or bool(repeated_runs(path))
    except (OSError, ValueError):
        return False
    return _is_alive(owner) is False


def writer_of(path: Path) -> int | None:
    """The number of another process of this machine that writes there, or None."""
    try:
        owner = json.loads((path / RUNNING).read_text())
        return int(owner["pid"]) if owner["pid"] != os.getpid() and _is_alive(owner) else None
    except (OSError, ValueError, KeyError):
        return None


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether the process in running.json exists; None if this machine cannot know."""
    if owner["host"] != socket.gethostname():
        return None
    try:
        return bool(psutil.Process(owner["pid"]).create_time() == owner["since"])
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return None


def has_begun(path: Path) -> bool:
    """Whether a run has written its configuration and its manifest there."""
    return (path / "config.yaml").is_file() and (path / "manifest.parquet").is_file()


def repeated_runs(path: Path) -> list[str]:
    """The names of the run folders in `path` if it holds several runs of one configuration, whether they have begun or
    not; empty for a single run."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        folds, num_seeds, seed = config["train"]["folds"], config["train"]["seeds"], config["seed"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []
    if folds:
        return [f"fold_{fold}" for fold in range(folds)]
    return [f"seed_{number}" for number in range(seed, seed + num_seeds)] if num_seeds > 1 else []
