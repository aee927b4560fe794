"""The manifest: one Arrow table of the images by content, so that a million images cost a process little memory."""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa

from headstart.arrow import strings
from headstart.data.source import Entry, Skipped, Source

COLUMNS = ("id", "path", "sha256", "split", "label")


@dataclass(frozen=True)
class Sample:
    """One image. path: its name in the source (in a folder: relative to the data root, posix); id: names the
    content."""

    id: str
    path: str
    sha256: str
    split: str
    label: str


class Samples(Sequence[Sample]):
    """Rows of a manifest. table: COLUMNS as strings; with blocks also block (string) and size (int64)."""

    def __init__(self, table: pa.Table, source: Source) -> None:
        self.table, self.source = table, source

    @staticmethod
    def of(samples: Sequence[Sample], entries: Sequence[Entry], source: Source) -> "Samples":
        """entries: what the source has of these samples, in the same order."""
        columns = {name: strings([getattr(sample, name) for sample in samples]) for name in COLUMNS}
        if any(entry.block for entry in entries):
            columns["block"] = strings([entry.block for entry in entries])
            columns["size"] = pa.array(np.array([entry.size for entry in entries], dtype=np.int64))
        return Samples(pa.Table.from_arrays(list(columns.values()), names=list(columns)), source)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        """A slice without a step shares the memory of the table."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Samples(self.table.slice(start, max(0, stop - start)), self.source)
            return Samples(self.table.take(pa.array(np.arange(start, stop, step))), self.source)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index % len(self)
        return Sample(*(self.table.column(name)[row].as_py() for name in COLUMNS))

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.table.select(COLUMNS).to_batches(max_chunksize=4096):
            yield from map(Sample, *(column.to_pylist() for column in batch.columns))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> list[Any]:
        """The values of a column; [] if the table has no such column (block and size)."""
        return self.table.column(name).to_pylist() if name in self.table.column_names else []

    def codes(self, classes: Sequence[str]) -> np.ndarray:
        """(n,) int64: the index of each label in `classes`."""
        code = {name: number for number, name in enumerate(classes)}
        return np.array([code[label] for label in self.column("label")], dtype=np.int64)


@dataclass(frozen=True)
class Manifest:
    """Samples sorted by (split, path); `classes` sorted by name; `skipped` files with their reason; `split_by`: who
    split the images into train and val, in words, "" if nobody did; has_test: whether the source has a test set,
    which takes no part; num_test: its images that have a class, None if they were not counted; only_in_test:
    the classes that only the test set has."""

    source: Source
    classes: tuple[str, ...]
    samples: Samples
    skipped: tuple[Skipped, ...]
    split_by: str = ""
    has_test: bool = False
    num_test: int | None = 0
    only_in_test: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        return self.source.root

    def of(self, split: str) -> Samples:
        """The rows of a split: a slice of the table, without a copy."""
        splits = self.samples.column("split")
        return self.samples[bisect_left(splits, split) : bisect_right(splits, split)]

    @property
    def sha256(self) -> str:
        """Of the (content, split, label) triples: the same after the folder moved or a file was renamed."""
        lines = sorted(f"{s.sha256} {s.split} {s.label}\n" for s in self.samples)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def table(self) -> pa.Table:
        """Columns id, path, sha256, split, label."""
        return self.samples.table.select(COLUMNS)
