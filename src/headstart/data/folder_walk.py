"""The one walk through a folder of images, for training, prediction and the data check."""

import os
import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from headstart.data.decode import EXTENSIONS
from headstart.errors import InputError
from headstart.files import reason_of

READ_AHEAD = 8  # folders per level whose names are read in threads: on a network each takes a while
SETTLED_NS = 2_000_000_000  # the resolution of the coarsest clock of a file system (FAT)


SYSTEM_NAMES = {
    *("__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db"),  # of desktops
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # of network disks (Synology, QNAP)
    *("lost+found", "$recycle.bin", "recycler", "system volume information", "found.000", "lost.dir"),  # of volumes
}
"""In lower case: what systems put beside the files of people. Names with a dot in front are hidden as well."""

RUN_FOLDER, LINK_UP = "the folder of a run", "a link to a folder that it lies in"
PASSED_OVER = {RUN_FOLDER, LINK_UP}
"""Why a folder is not searched."""


class Found(NamedTuple):
    """path: posix, relative to the root, bytes that are not UTF-8 as surrogates (os.fsdecode); stamp: see `stamp_of`;
    reason: why it is passed over or unreadable. What is passed over is a folder that is not searched: the folder of a
    run, or a link to a folder that it lies in. What is unreadable is a folder, or a link to nothing."""

    path: str
    kind: Literal["image", "other file", "hidden file", "folder", "hidden folder", "passed over", "unreadable"]
    stamp: str = ""
    reason: str = ""

    @property
    def is_hidden(self) -> bool:
        return self.kind in ("hidden file", "hidden folder")


def walk(root: Path, *, stamps: bool = False) -> Iterator[Found]:
    """Everything below `root`, sorted by path, a folder before what lies in it. Nothing below hidden folders.

    A link to a folder is followed each time it occurs, unless it leads to a folder that it lies in, the root and those
    above it included. Only
    READ_AHEAD folders per level are in memory. Raises InputError if the root itself cannot be read."""
    pool = ThreadPoolExecutor(READ_AHEAD)
    try:
        entries = _list(root, "", stamps)
        if isinstance(entries, str):
            raise InputError(f"{str(root)!a}: {entries}; make the folder readable")
        levels = [_Level(pool, root, "", entries, stamps)]
        while levels:
            found = next(levels[-1].found, None)
            if found is None:
                levels.pop()
            elif found.kind == "folder":
                inside, real = levels[-1].next_folder().result(), os.path.realpath(root / found.path)
                if isinstance(inside, str):
                    yield Found(found.path, "unreadable", reason=inside)
                elif any(real == level.real for level in levels) or Path(real) in Path(levels[0].real).parents:
                    yield Found(found.path, "passed over", reason=LINK_UP)
                elif is_run({entry.path.rpartition("/")[2] for entry in inside}):
                    yield Found(found.path, "passed over", reason=RUN_FOLDER)
                else:
                    yield found
                    levels.append(_Level(pool, root, found.path, inside, stamps))
            else:
                yield found
    finally:
        pool.shutdown(cancel_futures=True)


def is_run(names: Collection[str]) -> bool:
    """Whether a folder with entries of these names holds a run of headstart, and so is not a class of images."""
    return "config.yaml" in names and any(
        name in names for name in ("manifest.parquet", "metrics.jsonl", "checkpoints", "summary.json")
    )


class _Level:
    """The entries of one folder; those of its next READ_AHEAD folders are on their way."""

    def __init__(self, pool: ThreadPoolExecutor, root: Path, folder: str, entries: list[Found], stamps: bool) -> None:
        self.found = iter(entries)
        self.real = os.path.realpath(root / folder)
        folders = (entry.path for entry in entries if entry.kind == "folder")
        self._jobs = (pool.submit(_list, root, path, stamps) for path in folders)
        self._ahead: deque[Future[list[Found] | str]] = deque()

    def next_folder(self) -> "Future[list[Found] | str]":
        while len(self._ahead) < READ_AHEAD and (job := next(self._jobs, None)) is not None:
            self._ahead.append(job)
        return self._ahead.popleft()


def _list(root: Path, folder: str, stamps: bool) -> list[Found] | str:
    """The entries of one folder, or why it cannot be read. A folder sorts as if its name ended in "/", as the paths
    below it do."""
    found = []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                is_folder, reason = _is_folder(entry)
                if is_hidden(entry.name):
                    found.append(Found(path, "hidden folder" if is_folder else "hidden file"))
                elif is_folder:
                    found.append(Found(path, "folder"))
                elif is_image(path):  # if there is a reason, reading the file reports it
                    found.append(Found(path, "image", _stamp(entry) if stamps else ""))
                elif reason:
                    found.append(Found(path, "unreadable", reason=reason))
                else:
                    found.append(Found(path, "other file", _stamp(entry) if stamps else ""))
    except OSError as error:
        return reason_of(error)
    return sorted(found, key=lambda one: one.path + "/" if one.kind in ("folder", "hidden folder") else one.path)


def _is_folder(entry: "os.DirEntry[str]") -> tuple[bool, str]:
    """Whether it is a folder, and why that cannot be known. A link to nothing is a missing folder if its name has no
    extension."""
    try:
        is_folder = entry.is_dir()
        if not is_folder and entry.is_symlink() and not os.path.splitext(entry.name)[1] and not os.path.exists(entry):
            return False, "a link to nothing"
    except OSError as error:  # a link to itself, or a file system that does not answer
        return False, reason_of(error)
    return is_folder, ""


def unsupported_type(path: str) -> str:
    """Why a file is not used, by its extension."""
    return f"{extension_of(path)} is not a supported image type"


def is_image(path: str) -> bool:
    """By the extension."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Of a file or folder that no source reads: hidden, or of the system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


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
