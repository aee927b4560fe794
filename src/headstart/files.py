"""Atomic writes, and where files may be written. Knows no torch."""

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.errors import InputError


def check_out(out: str | None) -> None:
    """Raise InputError unless a file can be written there: before the work, not after it. None: nothing to check."""
    if out is None:
        return
    if Path(out).is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it")
    check_parent(Path(out))


def check_parent(out: Path) -> None:
    """Raise InputError unless the folder of `out` exists and can be written to."""
    folder = out.absolute().parent
    if not folder.is_dir():
        raise InputError(f"--out {out}: {folder} is not a folder; create it first")
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


def write_text(path: Path, text: str) -> None:
    """UTF-8, written atomically."""
    write_atomically(path, lambda staging: staging.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Indented JSON, written atomically. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def incomplete(out: Path) -> Path:
    """Where an interrupted command leaves what it has of `out`."""
    return out.with_suffix(f".incomplete{out.suffix}")


def read_regular(path: Path) -> bytes:
    """The content of a file. Raises OSError, also if it is not a regular file: reading a pipe would block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.read_bytes()


def sha256_of(path: Path) -> str:
    """The hash of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """XDG_CACHE_HOME/headstart, by default ~/.cache/headstart."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "headstart"


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
