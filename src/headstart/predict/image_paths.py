"""The images that a command names: files, folders, globs, lists, standard input; one at a time, so there may be
millions."""

import codecs
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from headstart.data.folder_walk import extension_of, walk
from headstart.data.sources import columns
from headstart.data.sources.table import paths_listed
from headstart.errors import InputError

TABLES = (*columns.TABLES, ".parquet")
LISTS = (".txt", ".lst")


@dataclass(frozen=True, slots=True)
class Listed:
    """An image as it was named. error: why it cannot be read, if that is known already."""

    path: str
    error: str | None = None


def images(
    patterns: Sequence[str], *, column: str | None = None, left_out: "Counter[str] | None" = None
) -> Iterator[Listed]:
    """The images that the patterns name, in order; those of a folder sorted by path.

    A pattern is a file, a folder (searched at any depth without hidden files, for the types in data/decode.py), a table
    (.csv, .tsv, .jsonl, .parquet) with a column of paths, a list (.txt) with one path per line, a glob, or - for one
    path per line (or NUL-separated, from find -print0) on standard input. Paths in a table or list are relative to
    it. Raises InputError for a pattern that names nothing, before the first image; the paths in a table, a list or on
    standard input are not checked. left_out: receives the number of files in folders that are skipped, by extension.
    """
    if sum(pattern == "-" for pattern in patterns) > 1:
        raise InputError("- is named twice, and standard input can be read once")
    for pattern in patterns:
        skipped: Counter[str] = Counter()
        if pattern != "-" and next(_named_by(pattern, column, skipped), None) is None:
            only = ", ".join(f"{count} {extension}" for extension, count in skipped.most_common(5))
            raise InputError(
                f"{pattern}: no images found{f', only {only}' if only else ''}; name files, folders, quoted globs, "
                ".csv or .txt lists, or -"
            )
    for pattern in patterns:
        yield from _named_by(pattern, column, Counter() if left_out is None else left_out)


def _named_by(pattern: str, column: str | None, left_out: "Counter[str]") -> Iterator[Listed]:
    path = Path(pattern)
    suffix = path.suffix.lower()
    if pattern == "-":
        yield from _in_list(sys.stdin.buffer, b"")
    elif path.is_dir():
        yield from _below(pattern, left_out)
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


def _below(folder: str, left_out: "Counter[str]") -> Iterator[Listed]:
    """The image files below a folder, sorted by path."""
    for found in walk(Path(folder)):
        if found.kind == "image":
            yield _listed(os.fsencode(os.path.join(folder, found.path)))
        elif found.kind == "other file":
            left_out[extension_of(found.path)] += 1


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
    except UnicodeDecodeError:  # it cannot be written to a table
        return Listed(name.decode("utf-8", "backslashreplace"), "the name is not valid UTF-8")
