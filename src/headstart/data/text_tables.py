"""Tables as text (.csv, .tsv), as spreadsheets and scripts write them: separated by comma, semicolon or tab, in UTF-8
or UTF-16."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from headstart.errors import InputError
from headstart.spreadsheet import restored
from headstart.wording import one_line, plural

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_PIPE = "|"  # only to name it
_EXCEL = re.compile(r'"?sep=(.)"?,*\s*', re.IGNORECASE)  # a first line that names the separator


class Row(NamedTuple):
    """line: of the file, where the row begins, counted from 1. values: by column, unstripped; a column that the row is
    too short for is missing."""

    line: int
    values: dict[str, str]


@dataclass(frozen=True)
class TextTable:
    """columns: the names in the first line that is not blank, stripped, "" for a column without a name."""

    path: Path
    separator: str
    columns: tuple[str, ...]

    @staticmethod
    def open(path: Path, *, fits: Callable[[Sequence[str]], bool]) -> "TextTable":
        """fits: whether these names include the needed ones. The separator is the first with which they do: a tab
        (.tsv) or a comma, then the others. Raises InputError for a file that cannot be read, and for a column that
        occurs twice."""
        usual = "\t" if path.suffix.lower() == ".tsv" else ","
        headers: dict[str, tuple[str, ...]] = {}
        failed: InputError | None = None
        for separator in dict.fromkeys([usual, *SEPARATORS]):
            try:
                headers[separator] = _header(path, separator)
            except InputError as error:  # quotes match only with the right separator
                failed = failed or error
                continue
            if fits(headers[separator]):
                break
        else:
            _refuse_pipes(path, fits, than=max(map(len, headers.values()), default=1))
            if failed:
                raise failed
            separator = max(headers, key=lambda found: len(headers[found]))  # the first of several
        check_columns(path, headers[separator])
        return TextTable(path, separator, headers[separator])

    def rows(self, used: Collection[str]) -> Iterator[Row]:
        """The rows that are not blank, in order; with a byte order mark of UTF-8, as --excel writes it, the values are
        those before `defused`. Raises InputError for quotes that do not match, and for a row that has more values than
        the header has columns, or lacks that of a column in `used`."""
        named = [(place, name) for place, name in enumerate(self.columns) if name]
        plain = restored if _has_mark(self.path) else str
        with _reading(self.path) as text:
            rows = _split(text, self.separator, self.path)
            next(rows, None)  # the header
            for number, (line, cells) in enumerate(rows, start=1):
                if len(cells) != len(self.columns):
                    self._check_length(cells, used, where=f"row {number} (line {line})")
                yield Row(line, {name: plain(cells[place]) for place, name in named if place < len(cells)})

    def _check_length(self, cells: Sequence[str], used: Collection[str], *, where: str) -> None:
        counts = f"{where} has {plural(len(cells), 'value')}, but the header has {plural(len(self.columns), 'column')}"
        if any(cell.strip() for cell in cells[len(self.columns) :]):
            raise InputError(f"{self.path}, {counts}; put a value that contains {SEPARATORS[self.separator]} in quotes")
        lacking = [name for name in self.columns[len(cells) :] if name in used]
        if lacking:
            raise InputError(
                f"{self.path}, {counts}: {lacking[0]!r} is missing; add it, or leave it empty after its separator"
            )


def check_columns(where: str | Path, names: Iterable[str]) -> None:
    """Raise InputError for two columns of one name: one of them would win silently."""
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise InputError(f"{where} has several columns named {twice!r}; rename or remove all but one")


def encoding_of(path: Path) -> str:
    """UTF-16 by its byte order mark, as spreadsheets write it; else UTF-8. Raises OSError, and InputError for UTF-16
    without a mark."""
    with path.open("rb") as file:
        first = file.read(2)
    if len(first) == 2 and first.count(0) == 1:  # the halves of a letter
        raise InputError(f"{path} looks like UTF-16 without a byte order mark; save it as UTF-8")
    return "utf-16" if first in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == codecs.BOM_UTF8


def not_utf8(path: Path) -> str:
    """Where the first byte is that is not UTF-8, and what to do."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{path}, line {number} is not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8"
    return f"{path} is not valid UTF-16; save the file as UTF-8"


class _reading:
    """The text of a file; errors while it is read are InputErrors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> IO[str]:
        try:
            self.file = self.path.open(encoding=encoding_of(self.path), newline="")
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from None
        return self.file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, UnicodeError):
            raise InputError(not_utf8(self.path)) from None
        if isinstance(error, OSError):
            raise InputError(f"{self.path} cannot be read: {one_line(error)}") from None


def _header(path: Path, separator: str) -> tuple[str, ...]:
    with _reading(path) as text:
        _, cells = next(_split(text, separator, path), (0, []))
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def _refuse_pipes(path: Path, fits: Callable[[Sequence[str]], bool], *, than: int) -> None:
    """Raise InputError for a header that | separates. than: the number of its columns with the separators."""
    try:
        names = _header(path, _PIPE)
    except InputError:
        return
    if fits(names) or len(names) > than:
        raise InputError(
            f"{path} separates its columns with |, which is not a supported separator; separate them with a comma, a "
            "semicolon or a tab"
        )


def _split(text: IO[str], separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, values) of each row; the first is the header. Blank lines are passed over."""
    first = text.readline()
    named = _EXCEL.fullmatch(first)
    lines = text if named else chain([first], text)
    offset, row = (1 if named else 0), -1
    # strict: a quote that is not closed would otherwise take the rest of the table for one value
    reader = csv.reader(lines, delimiter=named[1] if named else separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1 + offset
        try:
            cells = next(reader, None)
        except csv.Error as error:
            at = f"row {row + 1} (line {line})" if row >= 0 else f"line {line}"
            long = f", or a value has more than {csv.field_size_limit():,} characters" if "limit" in str(error) else ""
            raise InputError(
                f"{path}, {at}: the quotes do not match{long}; close the quote that opens there, and double quotes "
                "inside a value"
            ) from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells) or (row >= 0 and len(cells) > 1):
            row += 1
            yield line, cells
