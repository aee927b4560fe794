"""Parquet shards with the images inside: the row group that an image lies in is read, and the last ones are kept.

So what a process holds does not grow with the data, and the order of the images is ours.
"""

import json
import math
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from headstart.config import DataConfig
from headstart.data.samples import WINDOW_BYTES, Entry, PerProcess, Scan, Skipped
from headstart.data.sources import columns
from headstart.data.sources.shard import Shard, place_of, shard_of
from headstart.data.sources.table import class_name, collect, text
from headstart.errors import InputError
from headstart.wording import one_line

KEPT_BYTES = (
    2 * WINDOW_BYTES
)  # of row groups, per process: the window that is shuffled, and the beginning of the next one
KEPT_FILES = 64  # open at a time


@dataclass(frozen=True)
class ParquetShards:
    """An image is named SHARD/ROW; a block of the manifest is a row group. tests: whether test shards are looked into."""

    root: str
    data: DataConfig
    shards: dict[str, Shard]
    tests: bool = False
    columns: ClassVar[tuple[str, ...]] = ("image_column", "label_column", "split_column", "group_column")
    _files: PerProcess["_Files"] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_files", PerProcess(_Files, self.shards, self.data))

    @property
    def identity(self) -> str:
        return f"{place_of(self.root)}\n{self.data.image_column}"

    def holds_images(self) -> bool:
        """Or only their paths."""
        return self._files.get().image_column(next(iter(self.shards))) is not None

    def scan(self) -> Scan:
        skipped: list[Skipped] = []
        by_name = any(shard.split for shard in self.shards.values())
        scan = collect(self._entries(skipped, split_by_name=by_name), where=self.root)
        return Scan(scan.entries, skipped + scan.skipped)

    def _entries(self, skipped: list[Skipped], *, split_by_name: bool) -> Iterator[Entry]:
        files = self._files.get()
        for short, shard in self.shards.items():
            if shard.split == "test" and not self.tests and self.data.split_column is None:
                skipped.append(Skipped(short, "a test shard: neither trains nor measures"))
                continue
            file, row = files.file(short), 0
            schema = file.schema_arrow
            label = columns.label_column(self.data, schema.names, where=shard.name)
            group = columns.group_column(self.data, schema.names, where=shard.name)
            asked = self.data.split_column is not None or not split_by_name
            split = columns.split_column(self.data, schema.names, where=shard.name) if asked else None
            named, image = _class_names(schema, label), files.image_column(short)
            wanted = [column for column in (label, group, split) if column]
            for number in range(file.num_row_groups):
                try:
                    values = file.read_row_group(number, columns=wanted).to_pydict()
                except Exception as error:  # pyarrow's errors, and those of a file system behind a URL
                    raise InputError(f"{shard.name}, row group {number} cannot be read: {one_line(error)}") from None
                size = _bytes_per_row(file, number, str(image))
                for place, value in enumerate(values[label]):
                    path, row = f"{short}/{row}", row + 1
                    part = columns.split_named(text(values[split][place])) if split else shard.split
                    name = class_name(value, named, where=f"{shard.name}, row {row - 1}")
                    member = text(values[group][place]) if group else ""
                    yield Entry(path, name, part, member, shard.stamp, f"{short}#{number}", size)

    def read(self, path: str) -> bytes:
        short = shard_of(path, self.shards)
        return self._files.get().image(short, int(path[len(short) + 1 :]))


class _Files:
    """Open parquet files and the row groups that were read last."""

    def __init__(self, shards: Mapping[str, Shard], data: DataConfig) -> None:
        self._shards, self._data = shards, data
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._ends: dict[str, list[int]] = {}  # of each file: rows up to the end of each row group
        self._kept: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def file(self, short: str) -> pq.ParquetFile:
        """Open until KEPT_FILES others were asked for."""
        shard = self._shards[short]
        file = self._open.pop(short, None)
        if file is None:
            try:
                file = pq.ParquetFile(shard.open())
            except Exception as error:  # pyarrow's errors, and those of a file system behind a URL
                raise InputError(f"{shard.name} cannot be read as parquet: {one_line(error)}") from None
        self._open[short] = file
        while len(self._open) > KEPT_FILES:
            self._open.popitem(last=False)[1].close(force=True)
        return file

    def image_column(self, short: str) -> str | None:
        """The column with the images, None if there are only columns with other things, such as paths."""
        return _image_column(self.file(short).schema_arrow, self._data, where=self._shards[short].name)

    def image(self, short: str, row: int) -> bytes:
        with self._lock:
            group, start = self._row_group_of(short, row)
            images = self._kept.pop((short, group), None)
            if images is None:
                images = self._row_group(short, group)
            self._kept[(short, group)] = images
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        value = images[row - start].as_py()
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is None:
            raise OSError(f"no image in this row, only the path {path!r}" if path else "no image in this row")
        return bytes(content)

    def _row_group_of(self, short: str, row: int) -> tuple[int, int]:
        """The number of the row group that holds a row, and its first row."""
        if short not in self._ends:
            about = self.file(short).metadata
            self._ends[short] = list(accumulate(about.row_group(i).num_rows for i in range(about.num_row_groups)))
        ends = self._ends[short]
        group = bisect_right(ends, row)
        return group, ends[group - 1] if group else 0

    def _row_group(self, short: str, number: int) -> pa.Array:
        try:
            column = self.image_column(short)
            return self.file(short).read_row_group(number, columns=[column]).column(column).combine_chunks()
        except Exception as error:  # pyarrow's errors, and those of a file system behind a URL
            raise OSError(f"row group {number} cannot be read: {one_line(error)}") from None


def _image_column(schema: pa.Schema, data: DataConfig, *, where: str) -> str | None:
    """The column that holds files: bytes, or bytes and path as datasets stores images. By its name if there are several."""
    holding = [str(column.name) for column in schema if _holds_files(column.type)]
    if data.image_column is not None:
        return next((name for name in holding if name == columns.image_column(data, schema.names, where=where)), None)
    named = [name for known in columns.IMAGE for name in holding if name.lower() == known]
    structs = [name for name in holding if pa.types.is_struct(schema.field(name).type)]
    if named or structs:
        return (named or structs)[0]
    paths = any(name.lower() in columns.IMAGE and pa.types.is_string(schema.field(name).type) for name in schema.names)
    if paths or not holding:
        return None
    if len(holding) > 1:
        raise InputError(
            f"{where} has several columns that may hold images ({', '.join(holding)}); name one with {columns.option('image_column')}"
        )
    return holding[0]


def _holds_files(kind: pa.DataType) -> bool:
    struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes_per_row(file: pq.ParquetFile, number: int, column: str) -> int:
    """Of a column of a row group in memory, rounded up."""
    group = file.metadata.row_group(number)
    chunks = [group.column(place) for place in range(group.num_columns)]
    ours = [c for c in chunks if c.path_in_schema == column or c.path_in_schema.startswith(f"{column}.")]
    return math.ceil(sum(int(chunk.total_uncompressed_size) for chunk in ours) / max(int(group.num_rows), 1))


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """Those that datasets has written beside the data."""
    try:
        features: dict[str, Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [text(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
