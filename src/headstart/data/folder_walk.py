"""The one walk through a folder of images, for training, prediction and the data check."""

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from headstart.data.decode import EXTENSIONS
from headstart.errors import InputError

READ_AHEAD = 8  # folders per level whose names are read in threads: on a network each takes a while
SETTLED_NS = 2_000_000_000  # the resolution of the coarsest clock of a file system (FAT)


class Found(NamedTuple):
    """path: posix, relative to the root, bytes that are not UTF-8 as surrogates (os.fsdecode); stamp: see
    `stamp_of`."""

    path: str
    kind: Literal["image", "other file", "hidden file", "folder", "hidden folder"]
    stamp: str = ""

    @property
    def is_hidden(self) -> bool:
        return self.kind in ("hidden file", "hidden folder")


def walk(root: Path, *, stamps: bool = False) -> Iterator[Found]:
    """Everything below `root`, sorted by path, a folder before what lies in it. Nothing below hidden folders.

    A link to a folder is followed each time it occurs, unless it leads back to a folder that it lies in. Only
    READ_AHEAD folders per level are in memory. Raises InputError for a folder that cannot be read."""
    pool = ThreadPoolExecutor(READ_AHEAD)
    try:
        levels = [_Level(pool, root, "", _list(root, "", stamps), stamps)]
        while levels:
            found = next(levels[-1].found, None)
            if found is None:
                levels.pop()
                continue
            yield found
            if found.kind == "folder":
                inside = levels[-1].next_folder()
                real = os.path.realpath(root / found.path)
                if all(real != level.real for level in levels):
                    levels.append(_Level(pool, root, found.path, inside.result(), stamps))
    finally:
        pool.shutdown(cancel_futures=True)


class _Level:
    """The entries of one folder; those of its next READ_AHEAD folders are on their way."""

    def __init__(self, pool: ThreadPoolExecutor, root: Path, folder: str, entries: list[Found], stamps: bool) -> None:
        self.found = iter(entries)
        self.real = os.path.realpath(root / folder)
        folders = (entry.path for entry in entries if entry.kind == "folder")
        self._jobs = (pool.submit(_list, root, path, stamps) for path in folders)
        self._ahead: deque[Future[list[Found]]] = deque()

    def next_folder(self) -> "Future[list[Found]]":
        while len(self._ahead) < READ_AHEAD and (job := next(self._jobs, None)) is not None:
            self._ahead.append(job)
        return self._ahead.popleft()


def _list(root: Path, folder: str, stamps: bool) -> list[Found]:
    """The entries of one folder. A folder sorts as if its name ended in "/", as the paths below it do."""
    found = []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                is_folder = _is_folder(entry)
                if is_hidden(entry.name):
                    found.append(Found(path, "hidden folder" if is_folder else "hidden file"))
                elif is_folder:
                    found.append(Found(path, "folder"))
                else:
                    kind: Literal["image", "other file"] = "image" if is_image(path) else "other file"
                    found.append(Found(path, kind, _stamp(entry) if stamps else ""))
    except OSError as error:
        raise InputError(f"{str(root / folder)!a}: {error.strerror}; make the folder readable") from None
    return sorted(found, key=lambda one: one.path + "/" if one.kind in ("folder", "hidden folder") else one.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it reports that
        return False


def unsupported_type(path: str) -> str:
    """Why a file is not used, by its extension."""
    extension = extension_of(path)
    phone = extension.lower() in (".heic", ".heif")
    remedy = "; save it as .jpg, or set the phone to Most Compatible" if phone else ""
    return f"{extension} is not a supported image type{remedy}"


def is_image(path: str) -> bool:
    """By the extension."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def extension_of(path: str) -> str:
    """For messages: ".gif", or "no extension"."""
    return PurePosixPath(path).suffix.lower() or "no extension"


def stamp_of(status: os.stat_result) -> str:
    """A text that changes when the content of the file does, unless somebody resets its times. "" for a file modified
    within the last seconds: it may change again without a change of its time."""
    if time.time_ns() - status.st_mtime_ns < SETTLED_NS:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _stamp(entry: "os.DirEntry[str]") -> str:
    try:
        return stamp_of(entry.stat())
    except OSError:  # a link to nothing: reading it reports that
        return ""
