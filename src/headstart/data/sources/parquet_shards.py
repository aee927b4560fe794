"""Parquet shards with the images inside. The row group of an image is read, and the last ones are kept, so the memory
of a process does not grow with the data, and the order of the images is free."""

import json
import math
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headstart.config import DataConfig
from headstart.data.source import WINDOW_BYTES, Entry, PerProcess, Scan, Skipped, Source
from headstart.data.sources import columns
from headstart.data.sources.columns import Columns, collect, text
from headstart.data.sources.shard import Shard, has_tests, shard_of, used_shards
from headstart.errors import InputError
from headstart.wording import one_line

KEPT_BYTES = 2 * WINDOW_BYTES
"""Of row groups, per process: the window that is shuffled, and the beginning of the next one."""
KEPT_FILES = 64  # open at a time


@dataclass
class ParquetShards(Source):
    """Images are named SHARD/ROW; a block of the manifest is a row group. tests: whether test shards are read."""

    root: str
    data: DataConfig
    shards: dict[str, Shard]
    tests: bool = False
    columns = columns.ALL

    def __post_init__(self) -> None:
        self._files = PerProcess(_Files, self.shards, self.data)

    @property
    def identity(self) -> str:
        return f"{super().identity}\n{self.data.image_column}"

    def holds_images(self) -> bool:
        """False if it holds only their paths."""
        return self._files.get().image_column(next(iter(self.shards))) is not None

    def scan(self) -> Scan:
        skipped: list[Skipped] = []
        unread = has_tests(self.shards) and not (self.tests or self.data.split_column is not None)
        return collect(self._entries(skipped), skipped, where=self.root, unread_tests=unread)

    def _entries(self, skipped: list[Skipped]) -> Iterator[Entry]:
        files = self._files.get()
        split_by_name = any(shard.split for shard in self.shards.values())
        tests = self.tests or self.data.split_column is not None
        for short, shard in used_shards(self.shards, skipped, tests=tests):
            file, row = files.file(short), 0
            schema = file.schema_arrow
            used = Columns.of(self.data, schema.names, where=shard.name, split=not split_by_name)
            classes, image = _class_names(schema, used.label), files.image_column(short)
            for number in range(file.num_row_groups):
                try:
                    rows = file.read_row_group(number, columns=used.names).to_pylist()
                except Exception as error:  # pyarrow's errors, and those of a file system behind a URL
                    raise InputError(f"{shard.name}, row group {number} cannot be read: {one_line(error)}") from None
                size = _bytes_per_row(file, number, str(image))
                for values in rows:
                    yield used.entry(
                        f"{short}/{row}",
                        values,
                        where=f"{shard.name}, row {row}",
                        classes=classes,
                        split=shard.split,
                        stamp=shard.stamp,
                        block=f"{short}#{number}",
                        size=size,
                    )
                    row += 1

    def read(self, path: str) -> bytes:
        short = shard_of(path, self.shards)
        return self._files.get().image(short, int(path[len(short) + 1 :]))


class _Files:
    """Open parquet files and the row groups that were read last."""

    def __init__(self, shards: Mapping[str, Shard], data: DataConfig) -> None:
        self._shards, self._data = shards, data
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._ends: dict[str, list[int]] = {}  # of each file: number of rows up to the end of each row group
        self._kept: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def file(self, short: str) -> pq.ParquetFile:
        """Open until KEPT_FILES others have been used."""
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
            if short not in self._ends:
                about = self.file(short).metadata
                self._ends[short] = list(accumulate(about.row_group(i).num_rows for i in range(about.num_row_groups)))
            ends = self._ends[short]
            group = bisect_right(ends, row)
            start = ends[group - 1] if group else 0
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

    def _row_group(self, short: str, number: int) -> pa.Array:
        try:
            column = self.image_column(short)
            return self.file(short).read_row_group(number, columns=[column]).column(column).combine_chunks()
        except Exception as error:  # pyarrow's errors, and those of a file system behind a URL
            raise OSError(f"row group {number} cannot be read: {one_line(error)}") from None


def _image_column(schema: pa.Schema, data: DataConfig, *, where: str) -> str | None:
    """The column that holds files: bytes, or bytes and path as datasets stores images. By its name if there are
    several."""
    holding = [str(column.name) for column in schema if _holds_files(column.type)]
    if data.image_column is not None:
        return next(
            (n for n in holding if n == columns.required("image_column", data, schema.names, where=where)), None
        )
    named = [name for known in columns.IMAGE for name in holding if name.lower() == known]
    structs = [name for name in holding if pa.types.is_struct(schema.field(name).type)]
    if named or structs:
        return (named or structs)[0]
    paths = any(name.lower() in columns.IMAGE and pa.types.is_string(schema.field(name).type) for name in schema.names)
    if paths or not holding:
        return None
    if len(holding) > 1:
        raise InputError(
            f"{where} has several columns that may hold images ({', '.join(holding)}); name one with "
            f"{columns.option('image_column')}"
        )
    return holding[0]


def _holds_files(kind: pa.DataType) -> bool:
    struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes_per_row(file: pq.ParquetFile, number: int, column: str) -> int:
    """Memory of a column of a row group, per row, rounded up."""
    group = file.metadata.row_group(number)
    chunks = [group.column(place) for place in range(group.num_columns)]
    ours = [c for c in chunks if c.path_in_schema == column or c.path_in_schema.startswith(f"{column}.")]
    return math.ceil(sum(int(chunk.total_uncompressed_size) for chunk in ours) / max(int(group.num_rows), 1))


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    try:
        features: dict[str, Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [text(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
