"""Atomic writes, and where files may be written. Knows no torch."""

import hashlib
import json
import os
import re
import stat
import unicodedata
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.errors import InputError
from headstart.wording import shown

_ADDRESS = re.compile(
    r"(?:file|s3[an]?|gs|gcs|hdfs|viewfs|abfss?|az|adl|https?|s?ftp|ssh|hf|memory|oss|oci|webdav):|[a-z][a-z0-9+.-]+:/",
    re.IGNORECASE,
)


def user_path(path: str | os.PathLike[str]) -> str:
    """A path as a user names it, with ~ for the home folder, as a path of the system."""
    return os.path.expanduser(os.fspath(path))


def check_local(out: str | Path, *, option: str = "--out") -> None:
    """Raise InputError for an address, such as s3:bucket or file:folder: results are written to this machine."""
    if found := _ADDRESS.match(str(out)):
        raise InputError(
            f"{option} {out} is an address ({found[0]}), and results are written to this machine; name a path without "
            f"{found[0]}"
        )


def check_out(out: str | None) -> None:
    """Raise InputError unless a file can be written there: before the work, not after it. None: nothing to check."""
    if out is None:
        return
    check_local(out)
    if Path(out).is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it")
    check_parent(Path(out))


def check_parent(out: Path) -> None:
    """Raise InputError unless the folder of `out` exists and can be written to."""
    check_local(out)
    folder = out.absolute().parent
    if not folder.is_dir():
        raise InputError(f"--out {out}: {folder} is not a folder; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: no permission to write in {folder}; name another place")


def check_outside(out: str | Path, root: str, *, option: str = "--out") -> None:
    """Raise InputError if `out` is or lies inside `root`, the images: the next command would find it among them."""
    check_local(out, option=option)
    if lies_inside(out, root):
        raise InputError(f"{option} {out} lies inside the data; name a place outside {shown(os.path.realpath(root))}")


def check_links(out: str | Path) -> None:
    """Raise InputError if `out`, or a folder on the way to it, is a link to nothing: no folder can be created there."""
    place = Path(os.path.abspath(out))  # without a slash at the end, which would follow the link
    for path in (place, *place.parents):
        if os.path.islink(path) and not os.path.exists(path):
            raise InputError(
                f"--out {out}: {shown(str(path))} is a link to {shown(os.readlink(path))}, which cannot be reached; "
                "remove the link, or name another place"
            )


def lies_inside(path: str | Path, folder: str) -> bool:
    """Whether `path` is or lies below an existing folder, also by links."""
    if not os.path.isdir(folder):
        return False
    place = Path(os.path.realpath(path))
    return Path(os.path.realpath(folder)) in (place, *place.parents)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` gets a temporary name beside `path`; the file appears under its own name complete, or not at all."""
    path = path.absolute()  # pyarrow takes some relative names, such as s3:x, for addresses
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


def reason_of(error: OSError) -> str:
    """Why a file or folder cannot be used, in the words of the system."""
    return error.strerror or str(error) or type(error).__name__


def why_unreachable(path: str) -> str:
    """Why the system does not answer whether the file or folder exists, as on a network disk that is gone; else ""."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return reason_of(error)
    return ""


def check_reachable(path: str) -> None:
    """Raise InputError for `why_unreachable`, and for a text that cannot be a path."""
    try:
        reason = why_unreachable(path)
    except ValueError as error:
        reason = str(error)
    if reason:
        raise InputError(f"{shown(path[:200])}: {reason}; name a file or folder that can be read")


def read_regular(path: Path) -> bytes:
    """The content of a file. Raises OSError, also if it is not a regular file: reading a pipe would block."""
    path = as_stored(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.read_bytes()


def as_stored(path: Path) -> Path:
    """The file of this name: where there is none, one whose accents are composed or decomposed (NFC, NFD), as a list
    and a disk that come from different systems have them."""
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path()
    for part in path.parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found = next((found / form for form in forms if os.path.lexists(found / form)), found / part)
    return found


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
