"""A write is atomic or did not happen. Knows no torch."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def fsync(path: Path) -> None:
    """Of a file or a folder."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
