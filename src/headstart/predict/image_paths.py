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
from typing import IO, Any

from headstart.config import DataConfig
from headstart.data.folder_walk import extension_of, walk
from headstart.data.listed_files import listed_file
from headstart.data.sources.columns import cell
from headstart.data.sources.table import Table
from headstart.errors import InputError
from headstart.files import why_unreachable
from headstart.predict.kept_columns import KeptColumns, is_table

LISTS = (".txt", ".lst")
NO_COLUMNS = KeptColumns()


@dataclass(frozen=True, slots=True)
class Listed:
    """An image. path: as the list names it, so that rows join; of a folder or glob, as it can be opened. error: why it
    cannot be read, if that is known already. file: what to open, None if it is the path. kept: the values of the
    columns of the list that are carried along."""

    path: str
    error: str | None = None
    file: str | None = None
    kept: tuple[Any, ...] = ()


def images(
    patterns: Sequence[str],
    *,
    column: str | None = None,
    kept: KeptColumns = NO_COLUMNS,
    left_out: "Counter[str] | None" = None,
) -> Iterator[Listed]:
    """The images that the patterns name, in order; those of a folder sorted by path.

    A pattern is a file, a folder (searched at any depth without hidden files, for the types in data/decode.py), a table
    (.csv, .tsv, .jsonl, .parquet) with a column of paths, a list (.txt) with one path per line, a glob, or - for one
    path per line (or NUL-separated, from find -print0) on standard input. Paths in a table or list are relative to
    it. Raises InputError for a pattern that names nothing, before the first image; the paths in a table, a list or on
    standard input are not checked. kept: columns of the tables whose values are carried along. left_out: receives the
    number of files in folders that are skipped, by extension, and of folders that are not searched, by reason.
    """
    if sum(pattern == "-" for pattern in patterns) > 1:
        raise InputError("- is named twice, and standard input can be read once")
    for pattern in patterns:
        if is_table(pattern):
            _check_table(pattern, column)
        skipped: Counter[str] = Counter()
        if pattern != "-" and next(_named_by(pattern, column, kept, skipped), None) is None:
            only = ", ".join(f"{count} {extension}" for extension, count in skipped.most_common(5))
            raise InputError(
                f"{pattern}: no images found{f', only {only}' if only else ''}; name files, folders, quoted globs, "
                ".csv or .txt lists, or -"
            )
    for pattern in patterns:
        yield from _named_by(pattern, column, kept, Counter() if left_out is None else left_out)


def _named_by(pattern: str, column: str | None, kept: KeptColumns, left_out: "Counter[str]") -> Iterator[Listed]:
    path = Path(pattern)
    if pattern == "-":
        yield from _in_list(sys.stdin.buffer, "")
    elif "\0" not in pattern and (reason := why_unreachable(pattern)):
        yield Listed(_listed(os.fsencode(pattern)).path, reason)
    elif path.is_dir():
        yield from _below(pattern, left_out)
    elif is_table(pattern):
        table = Table.open(path, DataConfig(image_column=column))
        for number, row in enumerate(table.rows([table.image, *kept.names]), start=1):
            name = cell(row, table.image, where=f"{pattern}, row {number}")
            error = None if name else f"no path in row {number} of {pattern}"
            yield _in_folder(path.parent, name, error, kept.values(row))
    elif path.is_file() and path.suffix.lower() in LISTS:
        with path.open("rb") as lines:
            yield from _in_list(lines, path.parent)
    elif path.is_file():
        yield _listed(os.fsencode(pattern))
    else:
        found = sorted(glob.iglob(os.fsencode(_with_literal_folders(pattern)), recursive=True))
        yield from (_listed(name) for name in found if os.path.isfile(name))


def _check_table(pattern: str, column: str | None) -> None:
    """Raise InputError for a row that cannot be read: before the first image, not after thousands."""
    table = Table.open(Path(pattern), DataConfig(image_column=column))
    for number, row in enumerate(table.rows([table.image]), start=1):
        cell(row, table.image, where=f"{pattern}, row {number}")


def _with_literal_folders(pattern: str) -> str:
    """The glob, where [, * and ? stand for themselves in the names of its first folders that exist as written."""
    parts = pattern.split("/")
    literal = 0
    while literal < len(parts) - 1 and os.path.isdir("/".join(parts[: literal + 1]) or "/"):
        literal += 1
    return "/".join([glob.escape("/".join(parts[:literal])), *parts[literal:]]) if literal else pattern


def _below(folder: str, left_out: "Counter[str]") -> Iterator[Listed]:
    """The image files below a folder, sorted by path."""
    for found in walk(Path(folder)):
        if found.kind == "image":
            yield _listed(os.fsencode(os.path.join(folder, found.path)))
        elif found.kind == "unreadable":
            yield Listed(_listed(os.fsencode(os.path.join(folder, found.path))).path, found.reason)
        elif found.kind == "passed over":
            left_out[found.reason] += 1
        elif found.kind == "other file":
            left_out[extension_of(found.path)] += 1


def _in_list(lines: IO[bytes], base: str | Path) -> Iterator[Listed]:
    """One path per line, or NUL-separated if the first line holds a NUL. base: what relative paths are relative to.
    UTF-16 by its byte order mark, as the shell of Windows writes it."""
    rest = lines.read(len(codecs.BOM_UTF8))
    decoder = None
    if rest.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
        rest = decoder.decode(rest).encode()
    rest = rest.removeprefix(codecs.BOM_UTF8)
    separator = b""
    while chunk := lines.read(1 << 16):
        rest += chunk if decoder is None else decoder.decode(chunk).encode()
        if not separator and (b"\0" in rest or b"\n" in rest):
            separator = b"\0" if b"\0" in rest else b"\n"
        if separator:
            *whole, rest = rest.split(separator)
            yield from _paths(whole, base)
    yield from _paths([rest], base)


def _paths(names: Sequence[bytes], base: str | Path) -> Iterator[Listed]:
    for name in names:
        if name := name.removesuffix(b"\r"):
            listed = _listed(name)
            yield _in_folder(base, listed.path, listed.error)


def _in_folder(base: str | Path, name: str, error: str | None, kept: tuple[Any, ...] = ()) -> Listed:
    """A name in a list."""
    file: str | None = None
    if error is None:
        try:
            file = listed_file(base, name)
        except OSError as missing:
            error = missing.strerror
    return Listed(name, error, None if file == name else file, kept)


def _listed(name: bytes) -> Listed:
    try:
        return Listed(name.decode())
    except UnicodeDecodeError:  # it cannot be written to a table
        return Listed(name.decode("utf-8", "backslashreplace"), "the name is not valid UTF-8")
