"""Images that a table lists: .csv, .tsv, .jsonl or .parquet with a column of paths and one of classes."""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.config import DataConfig
from headstart.data.folder_walk import is_image, stamp_of
from headstart.data.listed_files import listed_file
from headstart.data.source import Entry, Scan, Source
from headstart.data.sources import columns
from headstart.data.sources.columns import Columns, cell, collect
from headstart.data.text_tables import TextTable, check_columns, encoding_of, not_utf8
from headstart.errors import InputError
from headstart.files import read_regular
from headstart.wording import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LINES = (".jsonl", ".ndjson")


@dataclass
class ListedImages(Source):
    """Paths are absolute, or relative to the folder of the table; names and stays as the table has them."""

    root: str
    data: DataConfig
    columns = columns.ALL

    def __post_init__(self) -> None:
        self.base = Path(self.root).absolute().parent  # as the working folder may change

    def scan(self) -> Scan:
        table = Table.open(Path(self.root), self.data, needed=("image_column", "label_column"))
        used = Columns.of(self.data, table.columns, where=self.root)

        def entries() -> Iterator[Entry]:
            for number, row in enumerate(table.rows([table.image, *used.names]), start=1):
                where = f"{self.root}, row {number}"
                path = cell(row, table.image, where=where)
                yield used.entry(path, row, where=where, stamp=self._stamp(path))

        return collect(entries(), [], where=self.root, numbered=True)

    def read(self, path: str) -> bytes:
        return read_regular(self.file(path))

    def file(self, path: str) -> Path:
        """Of the image that the table names. Raises OSError."""
        return Path(listed_file(self.base, path))

    def _stamp(self, path: str) -> str:
        try:
            return stamp_of(os.stat(self.file(path))) if path else ""
        except (OSError, ValueError):  # reading it reports that
            return ""


@dataclass(frozen=True)
class Table:
    """columns: the names. image: the column of paths. rows: those with the values of the columns in its
    argument, in order; others may be missing. Raises InputError for a row that cannot be read. types: by column; in a
    .jsonl by its values, string if they differ."""

    columns: Sequence[str]
    image: str
    rows: "_Rows"
    types: "Mapping[str, pa.DataType]"

    @staticmethod
    def open(path: Path, data: DataConfig, *, needed: Sequence[str] = ("image_column",)) -> "Table":
        """needed: keys of columns, by which the separator of a text is recognised. Raises InputError for a table that
        has no rows, or no column of paths."""
        names, rows, types = _opened(path, lambda names: all(columns.has(key, data, names) for key in needed))
        return Table(names, _image_column(path, data, names, rows), rows, types)


_Rows = Callable[[Collection[str]], Iterator[Mapping[str, Any]]]


def _image_column(table: Path, data: DataConfig, names: Sequence[str], rows: _Rows) -> str:
    """Of several columns with a usual name, the one whose first value looks like an image file."""
    known = [name for name in names if name.strip().lower() in columns.IMAGE]
    if data.image_column is None and len(known) > 1:
        first: Mapping[str, Any] = next(rows(known), {})
        names = [name for name in known if is_image(cell(first, name, where=f"{table}, row 1"))] or names
    return columns.required("image_column", data, names, where=str(table))


def _opened(path: Path, fits: Callable[[Sequence[str]], bool]) -> "tuple[Sequence[str], _Rows, dict[str, pa.DataType]]":
    import pyarrow as pa

    names: Sequence[str]
    rows: _Rows
    kind = path.suffix.lower()
    if kind == ".parquet":
        schema = _parquet(path).schema_arrow
        names, rows, types = (
            schema.names,
            partial(_parquet_rows, path),
            dict(zip(schema.names, schema.types, strict=True)),
        )
        check_columns(path, names)
    elif kind in LINES:
        found = _json_types(path)
        names, rows = list(found), partial(_json_rows, path)
        types = {name: _json_type(kinds) for name, kinds in found.items()}
    else:
        table = TextTable.open(path, fits=fits)
        names, rows = list(filter(None, table.columns)), lambda used: (row.values for row in table.rows(used))
        types = dict.fromkeys(names, pa.string())
    if not names or next(iter(rows(())), None) is None:
        raise InputError(f"{path} has no rows; add one for each image, with its path and class")
    return names, rows, types


def _json_types(path: Path) -> dict[str, set[type]]:
    """By column, in the order in which they appear; a row may lack some."""
    found: dict[str, set[type]] = {}
    for row in _json_rows(path):
        for name, value in row.items():
            is_long = isinstance(value, int) and not -(2**63) <= value < 2**63
            found.setdefault(name, set()).add(str if is_long else type(value))
    return found


def _json_type(found: set[type]) -> "pa.DataType":
    import pyarrow as pa

    found = found - {type(None)}
    if found == {bool}:
        return pa.bool_()
    if found == {int}:
        return pa.int64()
    return pa.float64() if found and found <= {int, float} else pa.string()


def _parquet_rows(path: Path, used: Collection[str]) -> Iterator[Mapping[str, Any]]:
    table = _parquet(path)
    for number in range(table.num_row_groups):
        try:
            rows = table.read_row_group(number, columns=list(used)).to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise InputError(f"{path}, row group {number} cannot be read: {one_line(error)}") from None
        yield from rows


def _json_rows(path: Path, used: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding=encoding_of(path)) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_row(line, where=f"{path}, line {number}")
    except UnicodeError:
        raise InputError(not_utf8(path)) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None


def _json_row(line: str, *, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} cannot be read as JSON: {one_line(error)}; write one JSON object per line") from None
    except _Repeated as error:
        raise InputError(f"{where}: {error}; rename or remove all but one") from None
    if not isinstance(row, dict):
        raise InputError(f'{where}: expected a JSON object, such as {{"image": ..., "label": ...}}')
    return row


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Repeated(f"a name occurs twice in {', '.join(name for name, _ in pairs)}")
    return found


class _Repeated(ValueError):
    """A name in a JSON object."""


def _parquet(path: Path) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path.absolute())
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {one_line(error)}") from None
