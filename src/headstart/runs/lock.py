"""What a run tells others while it goes on: that it does, in running.json, and how far it is, in metrics.jsonl. Knows no torch."""

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml

from headstart.errors import InputError
from headstart.files import write_atomically

RUNNING = "running.json"


class Running:
    """A file in the run folder that names the process which writes there, until `end` or until an error passes through the `with` block.
    A killed process leaves it, and then there is no such process."""

    def __init__(self, folder: Path | None) -> None:
        """None: does nothing, for processes that do not write."""
        self._path = None if folder is None else folder / RUNNING
        if self._path is not None:
            process = psutil.Process()
            about = {"pid": process.pid, "host": socket.gethostname(), "since": process.create_time()}
            write_atomically(self._path, lambda staging: staging.write_text(json.dumps(about) + "\n"))

    def __enter__(self) -> "Running":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.end()

    def end(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def is_over(path: Path) -> bool:
    """Whether no process writes there any more, as far as this machine can tell."""
    try:
        about = json.loads((path / RUNNING).read_text())
    except FileNotFoundError:
        return has_begun(path) or bool(repeated_runs(path))
    except (OSError, ValueError):
        return False
    if about["host"] != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(about["pid"]).create_time() != about["since"])
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def writer_of(path: Path) -> int | None:
    """The process of this machine that a run goes on in, or None."""
    try:
        about = json.loads((path / RUNNING).read_text())
        here = about["host"] == socket.gethostname() and about["pid"] != os.getpid()
        if here and psutil.Process(about["pid"]).create_time() == about["since"]:
            return int(about["pid"])
    except (OSError, ValueError, KeyError, psutil.Error):
        pass
    return None


def has_begun(path: Path) -> bool:
    """Whether a run has laid out its folder there."""
    return (path / "config.yaml").is_file() and (path / "manifest.parquet").is_file()


def repeated_runs(path: Path) -> list[str]:
    """The folders in it, of runs that are begun or will be, if it holds the same recipe several times; none of a single run."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        folds, num_seeds, seed = config["train"]["folds"], config["train"]["seeds"], config["seed"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []
    if folds:
        return [f"fold_{fold}" for fold in range(folds)]
    return [f"seed_{number}" for number in range(seed, seed + num_seeds)] if num_seeds > 1 else []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without a last line that is still being written. Raises InputError if it is damaged."""
    text = path.read_text(encoding="utf-8")
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}); use a copy of the run folder") from None
