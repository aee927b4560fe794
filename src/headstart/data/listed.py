"""Images that a table lists: .csv, .tsv, .jsonl or .parquet with a column of paths and one of classes."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headstart.config import DataConfig
from headstart.data import columns
from headstart.data.folders import check_name, stamp_of
from headstart.data.samples import Entry, Scan, Skipped
from headstart.errors import InputError


@dataclass(frozen=True)
class ListedImages:
    """Paths are absolute, or relative to the folder of the table."""

    root: str
    data: DataConfig
    base: Path = field(init=False)  # where the table lies, although the working folder may change

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", Path(self.root).absolute().parent)

    def scan(self) -> Scan:
        names = _columns(Path(self.root))
        image = columns.image_column(self.data, names, where=self.root)
        label = columns.label_column(self.data, names, where=self.root)
        split = columns.split_column(self.data, names, where=self.root)
        group = columns.group_column(self.data, names, where=self.root)
        return entries_of(
            _rows(Path(self.root)),
            image=image,
            label=label,
            split=split,
            group=group,
            stamp=self._stamp,
            where=self.root,
        )

    def read(self, path: str) -> bytes:
        return (self.base / path).read_bytes()

    def _stamp(self, path: str) -> str:
        try:
            return stamp_of(os.stat(self.base / path))
        except OSError:  # reading it will say so
            return ""


def entries_of(
    rows: Iterable[Mapping[str, Any]],
    *,
    image: str,
    label: str,
    split: str | None,
    group: str | None,
    stamp: Any,
    where: str,
) -> Scan:
    """One image per row. Rows without a path or a class, of another split, and repeated paths are listed as skipped."""
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    other: dict[str, int] = {}
    seen: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        path, name = text(row.get(image)), text(row.get(label))
        if not path or not name:
            skipped.append(Skipped(path or f"row {number}", f"no {'class' if path else 'path'} in row {number}"))
            continue
        check_name(path)
        part = None
        if split is not None:
            part = columns.split_named(text(row.get(split)))
            if part is None:
                other[text(row.get(split))] = other.get(text(row.get(split)), 0) + 1
                continue
        if path in seen:
            if seen[path] != name:
                raise InputError(
                    f"{where} lists {path} as {seen[path]!r} and, in row {number}, as {name!r}; keep one of them"
                )
            skipped.append(Skipped(path, f"listed again in row {number}"))
            continue
        seen[path] = name
        entries.append(Entry(path, name, part, text(row.get(group)) if group else "", stamp(path)))
    skipped += [
        Skipped(f"split {name!r}", f"{count} rows that neither train nor measure")
        for name, count in sorted(other.items())
    ]
    if not entries:
        raise InputError(f"{where} lists no image to train on or to measure")
    return Scan(check_splits(entries, where=where), skipped)


def check_splits(entries: list[Entry], *, where: str) -> list[Entry]:
    """Raises InputError if images of one split have no counterpart."""
    parts = {entry.split for entry in entries}
    if len(parts) == 1 and None not in parts:
        only = parts.pop()
        raise InputError(f"{where} has a split for {only!r} alone; it needs train and val, or no split column at all")
    return entries


def text(value: Any) -> str:
    """As a class or a path is written: 3 and 3.0 are '3', what is missing is ''."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _columns(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)
    first = next(_rows(path), None)
    if first is None:
        raise InputError(f"{path} has no rows")
    return list(first)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            if kind in (".jsonl", ".ndjson"):
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
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def paths_listed(table: str, *, column: str | None) -> Iterator[str]:
    """The images of a table, row by row, as they can be opened; "" where a row names none. Raises InputError."""
    path = Path(table)
    image = columns.image_column(DataConfig(image_column=column), _columns(path), where=table)
    for row in _rows(path):
        name = text(row.get(image))
        yield os.path.join(path.parent, name) if name else ""
