"""Which images a command names: files, folders, globs, lists, standard input. One after another, so that there may be millions."""

import codecs
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from headstart.data.decode import EXTENSIONS
from headstart.data.sources.folders import is_hidden
from headstart.data.sources.table import paths_listed
from headstart.errors import InputError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
LISTS = (".txt", ".lst")


@dataclass(frozen=True, slots=True)
class Listed:
    """An image as it was named. error: why there is nothing to read there, known already."""

    path: str
    error: str | None = None


def images(
    patterns: Sequence[str], *, column: str | None = None, left_out: "Counter[str] | None" = None
) -> Iterator[Listed]:
    """The images that the patterns name, in order; a folder's sorted by name, whatever the file system says.

    A pattern is a file, a folder (searched below, hidden files left out), a table (.csv, .tsv, .jsonl, .parquet) with a column
    of paths, a list (.txt) with one path per line, a glob, or - for one path per line (or NUL-separated, as of find -print0) of
    standard input. Paths in a table or list are relative to it. Raises InputError for a pattern that names nothing, before the
    first image; a path in a table, a list or on standard input is taken at its word. left_out: counts the files in folders that are
    no images by the ends of their names.
    """
    if sum(pattern == "-" for pattern in patterns) > 1:
        raise InputError("- is named twice, and standard input can be read once")
    for pattern in patterns:
        if pattern != "-" and next(_named_by(pattern, column, Counter()), None) is None:
            raise InputError(f"{pattern}: no image there; name files, folders, quoted globs, .csv or .txt lists, or -")
    for pattern in patterns:
        yield from _named_by(pattern, column, Counter() if left_out is None else left_out)


def _named_by(pattern: str, column: str | None, left_out: "Counter[str]") -> Iterator[Listed]:
    path = Path(pattern)
    suffix = path.suffix.lower()
    if pattern == "-":
        yield from _in_list(sys.stdin.buffer, b"")
    elif path.is_dir():
        yield from map(_listed, _below(os.fsencode(pattern), left_out))
    elif path.is_file() and suffix in TABLES:
        for number, name in enumerate(paths_listed(pattern, column=column), start=1):
            yield Listed(name) if name else Listed("", f"no path in row {number} of {pattern}")
    elif path.is_file() and suffix in LISTS:
        with path.open("rb") as lines:
            yield from _in_list(lines, os.fsencode(path.parent))
    elif path.is_file():
        yield _listed(os.fsencode(pattern))
    else:
        found = sorted(glob.iglob(os.fsencode(pattern), recursive=True))
        yield from (_listed(name) for name in found if os.path.isfile(name))


def _below(folder: bytes, left_out: "Counter[str]") -> Iterator[bytes]:
    """Image files below a folder, sorted by their whole names; only one folder per level is in memory."""
    todo: list[Iterator[tuple[bytes, bool]]] = [iter(_entries(folder, left_out))]
    open_folders = [os.path.realpath(folder)]
    while todo:
        name, is_folder = next(todo[-1], (b"", False))
        if not name:
            todo.pop()
            open_folders.pop()
        elif not is_folder:
            yield name
        elif (real := os.path.realpath(name)) not in open_folders:  # else a link back up
            todo.append(iter(_entries(name, left_out)))
            open_folders.append(real)


def _entries(folder: bytes, left_out: "Counter[str]") -> list[tuple[bytes, bool]]:
    """(path, is a folder) of what is not hidden. A folder sorts as if its name ended in /, as the paths below it do."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(os.fsdecode(entry.name)):
                    continue
                if entry.is_dir():
                    found.append((entry.name + b"/", entry.path, True))
                elif (ending := os.path.splitext(os.fsdecode(entry.name))[1].lower()) in EXTENSIONS:
                    found.append((entry.name, entry.path, False))
                else:
                    left_out[ending or "no extension"] += 1
    except OSError as error:
        raise InputError(f"{os.fsdecode(folder)!a}: {error.strerror}; make the folder readable") from None
    return [(path, is_folder) for _, path, is_folder in sorted(found)]


def _in_list(lines: IO[bytes], base: bytes) -> Iterator[Listed]:
    """One path per line, or NUL-separated if the first line holds a NUL. base: what relative paths are relative to."""
    rest = lines.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
    separator = b""
    while chunk := lines.read(1 << 16):
        rest += chunk
        if not separator and (b"\0" in rest or b"\n" in rest):
            separator = b"\0" if b"\0" in rest else b"\n"
        if separator:
            *whole, rest = rest.split(separator)
            yield from _paths(whole, base)
    yield from _paths([rest], base)


def _paths(names: Sequence[bytes], base: bytes) -> Iterator[Listed]:
    for name in names:
        if name := name.removesuffix(b"\r"):
            yield _listed(os.path.join(base, name))


def _listed(name: bytes) -> Listed:
    try:
        return Listed(name.decode())
    except UnicodeDecodeError:  # it could stand in no table that we write
        return Listed(name.decode("utf-8", "backslashreplace"), "the name is not valid UTF-8")
