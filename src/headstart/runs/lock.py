"""Whether a run is in progress, from running.json and the other files of its folder. Knows no torch."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil

from headstart.config_io import repeated_runs
from headstart.files import write_text
from headstart.wording import command_line

RUNNING, SUMMARY = "running.json", "summary.json"


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


def is_finished(path: Path) -> bool:
    """Whether a run has ended there: its summary is the last file that it writes."""
    return (path / SUMMARY).exists()


def whole_of(path: Path) -> Path:
    """The folder of repeated runs that `path` is one of; `path` itself for a single run."""
    return path.parent if path.name in repeated_runs(path.parent) else path


def finished_in_words(path: Path) -> str:
    return f"{path} is finished, so there is nothing to resume; to see its report: {command_line('open', path)}"


def resume_command(path: Path) -> str:
    """The command that continues an interrupted run, with all the others if it is one of repeated runs."""
    return command_line("resume", whole_of(path))
