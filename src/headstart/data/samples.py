"""The manifest: what is in the data, by content. Its rows lie in a table, so a million images cost a process little memory."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
import pyarrow as pa

from headstart.arrow import strings
from headstart.wording import shown

T = TypeVar("T")
COLUMNS = ("id", "path", "sha256", "split", "label")
PARTS: frozenset[str | None] = frozenset({"train", "val", None})
"""Of Entry.split: what training looks at. Others, such as a test set, take no part."""

WINDOW_BYTES = 128 * 2**20  # of the blocks whose images are shuffled together, at most


class Source(Protocol):
    """Where images come from: everything after it is the same for all of them."""

    @property
    def root(self) -> str:
        """As the user named it."""

    @property
    def identity(self) -> str:
        """What, together with the name of an image, tells which image it is: the place, and the column if there are several."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Which of the keys data.*_column it looks at."""

    def scan(self) -> "Scan":
        """All images and their labels, without reading them. Raises InputError if there is nothing to train on."""

    def read(self, path: str) -> bytes:
        """The file of the image with this name. Raises OSError. May be called in threads and in forked processes."""


class PerProcess(Generic[T]):
    """Something like an open file, which must not be shared with forked or pickled copies: opened anew in each process."""

    def __init__(self, make: Callable[..., T], *arguments: Any) -> None:
        self._make, self._arguments = make, arguments
        self._made: tuple[int, T] | None = None

    def get(self) -> T:
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), self._make(*self._arguments)
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None}


@dataclass(frozen=True, slots=True)
class Entry:
    """An image that a source has. `path` names it in the source; split: "train", "val", what else the source calls it, None
    if it has none; group: images of one group stay on one side of a split; stamp: changes when the file does, "" if the
    source cannot tell; block: images that are cheap to read together, such as a row group of a parquet file;
    size: bytes of memory that each image of the block takes while the block is held."""

    path: str
    label: str
    split: str | None = None
    group: str = ""
    stamp: str = ""
    block: str = ""
    size: int = 0


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why. `path` is relative to the data root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """empty: class folders without any image, relative to the root; bad: images that cannot be used."""

    entries: list[Entry]
    skipped: list[Skipped]
    empty: tuple[str, ...] = ()
    bad: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image. `path` names it in its source (of a folder: relative to the data root, posix); `id` names the content."""

    id: str
    path: str
    sha256: str
    split: str
    label: str


class Samples(Sequence[Sample]):
    """Rows of a manifest."""

    def __init__(self, table: pa.Table, source: Source) -> None:
        self.table, self.source = table, source

    @staticmethod
    def of(samples: Sequence[Sample], entries: Sequence[Entry], source: Source) -> "Samples":
        """entries: what the source said of these samples, in the same order."""
        columns = [strings([getattr(sample, name) for sample in samples]) for name in COLUMNS]
        names = list(COLUMNS)
        if any(entry.block for entry in entries):
            sizes = np.array([entry.size for entry in entries], dtype=np.int64)
            columns += [strings([entry.block for entry in entries]), pa.array(sizes)]
            names += ["block", "size"]
        return Samples(pa.Table.from_arrays(columns, names=names), source)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            picked = np.arange(len(self))[index]
            return Samples(self.table.take(pa.array(picked)), self.source)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        return Sample(*(self.table.column(name)[place].as_py() for name in COLUMNS))

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.table.select(COLUMNS).to_batches(max_chunksize=4096):
            yield from map(Sample, *(column.to_pylist() for column in batch.columns))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> list[Any]:
        """The values of "id", "path", "sha256", "split" or "label"; of "block" and "size" if there are any, else []."""
        return self.table.column(name).to_pylist() if name in self.table.column_names else []

    def codes(self, classes: Sequence[str]) -> np.ndarray:
        """(n,) int64: the place of each label in `classes`."""
        code = {name: place for place, name in enumerate(classes)}
        return np.array([code[label] for label in self.column("label")], dtype=np.int64)

    def where(self, path: str) -> str:
        """What a message calls the image of this name."""
        return os.path.join(self.source.root, path)


@dataclass(frozen=True)
class Manifest:
    """Samples sorted by (split, path); `classes` sorted by name; `skipped` files named with their reason."""

    source: Source
    classes: tuple[str, ...]
    samples: Samples
    skipped: tuple[Skipped, ...]

    @property
    def root(self) -> str:
        return self.source.root

    def of(self, split: str) -> Samples:
        rows = np.array(self.samples.column("split")) == split
        return Samples(self.samples.table.filter(pa.array(rows)), self.source)

    @property
    def sha256(self) -> str:
        """Of the (content, split, label) triples: the same after the folder moved or a file was renamed."""
        lines = sorted(f"{s.sha256} {s.split} {s.label}\n" for s in self.samples)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def table(self) -> pa.Table:
        """Columns id, path, sha256, split, label."""
        return self.samples.table.select(COLUMNS)


def summarize(reasons: Sequence[Skipped], *, limit: int = 5) -> str:
    """'a/b.jpg (reason), c/d.png (reason) and 7 more'."""
    text = ", ".join(f"{shown(s.path)} ({s.reason})" for s in reasons[:limit])
    return text + (f" and {len(reasons) - limit} more" if len(reasons) > limit else "")
