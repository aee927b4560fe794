"""A write is atomic or did not happen. Knows no torch."""

import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.errors import InputError


def check_out(out: str | None) -> None:
    """Raise InputError unless a file could be written there; before the work, not after it."""
    if out is None:
        return
    folder = Path(out).absolute().parent
    if not folder.is_dir():
        raise InputError(f"--out {out}: {folder} is not a folder; make it first")
    if Path(out).is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: no permission to write in {folder}; name another place")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` gets a temporary name beside `path`; the file appears under its own name complete, or not at all."""
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # threads and machines may write at once
    try:
        write(staging)
        fsync(staging)
        os.replace(staging, path)
        fsync(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def read_regular(path: Path) -> bytes:
    """The content of a file. Raises OSError, also for what is no file: a pipe would wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.read_bytes()


def cache_folder() -> Path:
    """XDG_CACHE_HOME/headstart, by default ~/.cache/headstart."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "headstart"


def fsync(path: Path) -> None:
    """Of a file or a folder."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
