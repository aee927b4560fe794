"""Images that a table lists: .csv, .tsv, .jsonl or .parquet with a column of paths and one of classes."""

import codecs
import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from headstart.config import DataConfig
from headstart.data.samples import PARTS, Entry, Scan, Skipped
from headstart.data.sources import columns
from headstart.data.sources.folders import check_name, is_image, stamp_of
from headstart.errors import InputError
from headstart.files import read_regular
from headstart.wording import one_line

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class ListedImages:
    """Paths are absolute, or relative to the folder of the table."""

    root: str
    data: DataConfig
    columns: ClassVar[tuple[str, ...]] = ("image_column", "label_column", "split_column", "group_column")
    base: Path = field(init=False)  # where the table lies, although the working folder may change

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", Path(self.root).absolute().parent)

    @property
    def identity(self) -> str:
        return os.path.abspath(self.root)

    def scan(self) -> Scan:
        table = Path(self.root)
        names = _columns(table)
        image = _image_column(table, self.data, names)
        label = columns.label_column(self.data, names, where=self.root)
        split = columns.split_column(self.data, names, where=self.root)
        group = columns.group_column(self.data, names, where=self.root)

        def entry_of(row: Mapping[str, Any]) -> Entry:
            path = text(row.get(image))
            part = columns.split_named(text(row.get(split))) if split else None
            member = text(row.get(group)) if group else ""
            return Entry(path, text(row.get(label)), part, member, self._stamp(path))

        return collect(map(entry_of, _rows(table)), where=self.root, numbered=True)

    def read(self, path: str) -> bytes:
        return read_regular(self.base / path)

    def _stamp(self, path: str) -> str:
        try:
            return stamp_of(os.stat(self.base / path)) if path else ""
        except (OSError, ValueError):  # reading it will say so
            return ""


def collect(entries: Iterable[Entry], *, where: str, numbered: bool = False) -> Scan:
    """What can be used of `entries`; those without a path or a class ("") and repeated ones are listed as skipped.

    numbered: whether the place among the entries is what a person would look for."""
    kept: list[Entry] = []
    skipped: list[Skipped] = []
    idle: Counter[str] = Counter()  # of parts that take no part and need no classes
    seen: dict[tuple[bool, str], str] = {}
    for number, entry in enumerate(entries, start=1):
        row = f" in row {number}" if numbered else ""
        if not entry.path or not entry.label:
            if entry.split in PARTS:
                lacks = "no class" if entry.path else "no path"
                skipped.append(Skipped(entry.path or f"row {number}", f"{lacks}{row}"))
            else:
                idle[str(entry.split)] += 1
            continue
        check_name(entry.path)
        key = (entry.split in PARTS, entry.path)
        if key not in seen:
            seen[key] = entry.label
            kept.append(entry)
        elif seen[key] == entry.label:
            skipped.append(Skipped(entry.path, f"listed again{row}"))
        else:
            raise InputError(
                f"{where} lists {entry.path} as {seen[key]!r} and{row} as {entry.label!r}; keep one of them"
            )
    skipped += [Skipped(f"split {name!r}", f"{n} without a path or a class") for name, n in sorted(idle.items())]
    return Scan(kept, skipped)


def class_name(value: Any, names: Sequence[str], *, where: str) -> str:
    """Of a value in a column of classes; "" for one that is missing (-1: how datasets marks what has no class).

    names: of the numbers, if the values are numbers of classes."""
    if value is None or value == -1:
        return ""
    if not names or isinstance(value, str):
        return text(value)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise InputError(f"{where}: the class is {value!r}, and the data name {len(names)} classes, numbered from 0")
    return names[value]


def text(value: Any) -> str:
    """As a class or a path is written: 3 and 3.0 are '3', what is missing is '', bytes are UTF-8. Raises InputError for
    what holds several values."""
    if value is None or value != value:
        return ""
    if isinstance(value, list | dict):
        raise InputError(
            f"{str(value)[:60]!r} stands where one name should; name the columns with {columns.option('image_column')} and "
            f"{columns.option('label_column')}"
        )
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _image_column(table: Path, data: DataConfig, names: Sequence[str]) -> str:
    """Of several columns that by their names may hold paths, the one that does: an image may have a number, too."""
    known = [name for name in names if name.lower() in columns.IMAGE]
    if data.image_column is None and len(known) > 1:
        first: Mapping[str, Any] = next(_rows(table), {})
        names = [name for name in known if is_image(text(first.get(name)))] or names
    return columns.image_column(data, names, where=str(table))


def _columns(path: Path) -> list[str]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    if kind in LINES:
        names = list(dict.fromkeys(name for row in _rows(path) for name in row))  # a row may lack what others have
    else:
        names = [name for name in next(_rows(path), {}) if name]
    if not names:
        raise InputError(f"{path} has no rows")
    return names


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        table = _parquet(path)
        for number in range(table.num_row_groups):
            try:
                rows = table.read_row_group(number).to_pylist()
            except OSError as error:
                raise InputError(f"{path}, row group {number} cannot be read: {one_line(error)}") from None
            yield from rows
        return
    try:
        with path.open(encoding=_encoding(path), newline="") as lines:
            if kind in LINES:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise InputError(
                                f'{path}, line {number}: expected a JSON object, such as {{"image": ..., "label": ...}}'
                            )
                        yield row
            else:
                yield from csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",")
    except (OSError, UnicodeError, csv.Error, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None


def _parquet(path: Path) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {one_line(error)}") from None


def _encoding(path: Path) -> str:
    """By the mark at its beginning: UTF-16, as spreadsheets write it; else UTF-8."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def paths_listed(table: str, *, column: str | None) -> Iterator[str]:
    """The images of a table, row by row, as they can be opened; "" where a row names none. Raises InputError."""
    path = Path(table)
    image = _image_column(path, DataConfig(image_column=column), _columns(path))
    for row in _rows(path):
        name = text(row.get(image))
        yield os.path.join(path.parent, name) if name else ""
