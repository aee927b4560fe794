"""Images that a table lists: .csv, .tsv, .jsonl or .parquet with a column of paths and one of classes."""

import codecs
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.config import DataConfig
from headstart.data.folder_walk import is_image, stamp_of
from headstart.data.source import Entry, Scan, Source
from headstart.data.sources import columns
from headstart.data.sources.columns import Columns, collect, text
from headstart.errors import InputError
from headstart.files import read_regular
from headstart.wording import one_line

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LINES = (".jsonl", ".ndjson")


@dataclass
class ListedImages(Source):
    """Paths are absolute, or relative to the folder of the table."""

    root: str
    data: DataConfig
    columns = columns.ALL

    def __post_init__(self) -> None:
        self.base = Path(self.root).absolute().parent  # as the working folder may change

    def scan(self) -> Scan:
        table = Path(self.root)
        names = _columns(table)
        image = _image_column(table, self.data, names)
        used = Columns.of(self.data, names, where=self.root)

        def entry_of(row: Mapping[str, Any]) -> Entry:
            path = text(row.get(image))
            return used.entry(path, row, where=self.root, classes=None, stamp=self._stamp(path))

        return collect(map(entry_of, _rows(table)), [], where=self.root, numbered=True)

    def read(self, path: str) -> bytes:
        return read_regular(self.base / path)

    def _stamp(self, path: str) -> str:
        try:
            return stamp_of(os.stat(self.base / path)) if path else ""
        except (OSError, ValueError):  # reading it reports that
            return ""


def _image_column(table: Path, data: DataConfig, names: Sequence[str]) -> str:
    """Of several columns with a usual name, the one whose first value looks like an image file."""
    known = [name for name in names if name.lower() in columns.IMAGE]
    if data.image_column is None and len(known) > 1:
        first: Mapping[str, Any] = next(_rows(table), {})
        names = [name for name in known if is_image(text(first.get(name)))] or names
    return columns.required("image_column", data, names, where=str(table))


def _columns(path: Path) -> list[str]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    if kind in LINES:
        names = list(dict.fromkeys(name for row in _rows(path) for name in row))  # a row may lack some
    else:
        names = [name for name in next(_rows(path), {}) if name]
    if not names:
        raise InputError(f"{path} has no rows; add one for each image, with its path and class")
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
            if kind not in LINES:
                yield from csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",")
                return
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        example = '{"image": ..., "label": ...}'
                        raise InputError(f"{path}, line {number}: expected a JSON object, such as {example}")
                    yield row
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
    """UTF-16 by its byte order mark, as spreadsheets write it; else UTF-8."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def paths_listed(table: str, *, column: str | None) -> Iterator[str]:
    """The images of a table, row by row, as paths that can be opened; "" for a row without one. Raises InputError."""
    path = Path(table)
    image = _image_column(path, DataConfig(image_column=column), _columns(path))
    for row in _rows(path):
        name = text(row.get(image))
        yield os.path.join(path.parent, name) if name else ""
