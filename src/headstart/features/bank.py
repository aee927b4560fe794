"""The feature bank: outputs of a frozen trunk on disk, addressed by what they were computed from.

A bank has a folder per key (trunk and preprocessing) with shards: files of rows of features, each row named by the
content of its image and the transform. Shards are written atomically and never change, so runs may share a bank
without a lock: each run writes shards with names of its own and reads all shards."""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import InputError
from headstart.features.shards import NAME_BYTES, read_shard, write_shard
from headstart.files import cache_folder, write_atomically

EVAL_TRANSFORM = "eval"
STALE_S = 3600.0  # an unfinished file of this age is left over from a killed writer
MERGE_SHARDS = 64  # number of small shards of one writer that are merged into a large one
_SCHEMA = 1


def default_location() -> Path:
    """XDG_CACHE_HOME/headstart/bank, by default under ~/.cache."""
    return cache_folder() / "bank"


def bank_key(*, weights_sha256: str, form: str, preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines a feature besides the image and its transform. Its hash names the folder."""
    return {"schema": _SCHEMA, "weights_sha256": weights_sha256, "form": form, "preprocess": dict(preprocess)}


def row_name(sha256: str, transform: str) -> bytes:
    """16 bytes: a hash of the image's content and the id of its transform."""
    return hashlib.blake2b(f"{sha256} {transform}".encode(), digest_size=NAME_BYTES).digest()


@dataclass(frozen=True)
class Damaged:
    """A shard that fails its checks. Its rows are computed again."""

    path: Path
    reason: str


class Bank:
    """The rows of one key. Opening reads and checks every shard; the features stay memory-mapped."""

    def __init__(self, location: Path, key: Mapping[str, Any], *, width: int) -> None:
        """width: numbers per row. Raises InputError if `location` has no bank of this key and none can be created. A
        bank on a read-only disk can be read."""
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        self.path = location / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.width = width
        self.damaged: list[Damaged] = []
        self._rows: dict[bytes, tuple[np.ndarray, int]] = {}
        self._seen: set[str] = set()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / "key.json").exists():
                content = json.dumps(key, indent=2, sort_keys=True) + "\n"
                write_atomically(self.path / "key.json", lambda staging: staging.write_text(content, encoding="utf-8"))
        except OSError as error:
            raise _not_writable(location, error) from None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # last used: for pruning
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: bytes) -> bool:
        return name in self._rows

    def refresh(self) -> None:
        """Read the shards that any process has finished since. Damaged ones are added to `damaged` and left out."""
        while not self._read_new_shards():
            pass

    def _read_new_shards(self) -> bool:
        """False if a shard was removed meanwhile: its writer has merged it into one that was not listed yet."""
        complete = True
        for path in sorted(self.path.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            try:
                names, features = read_shard(path, width=self.width)
            except FileNotFoundError:
                complete = False
                continue
            except ValueError as error:
                self.damaged.append(Damaged(path, str(error)))
                names = []
            self._seen.add(path.name)
            for row, name in enumerate(names):
                self._rows.setdefault(name, (features, row))
        return complete

    def remove_damaged(self) -> None:
        """Delete the files in `damaged`, after their rows have been computed again."""
        for damaged in self.damaged:
            damaged.path.unlink(missing_ok=True)

    def rows(self, names: Sequence[bytes]) -> "BankRows":
        """(n, width): the rows of these names, in this order, still memory-mapped. Raises KeyError for an unknown
        name."""
        maps: list[np.ndarray] = []
        index_of: dict[int, int] = {}  # of a map in `maps`, by its identity
        where = np.empty((len(names), 2), dtype=np.int64)
        for number, name in enumerate(names):
            features, row = self._rows[name]
            if id(features) not in index_of:
                index_of[id(features)] = len(maps)
                maps.append(features)
            where[number] = index_of[id(features)], row
        return BankRows(maps, where, width=self.width)

    def writer(self) -> "Writer":
        return Writer(self.path, width=self.width)


class BankRows:
    """A float32 matrix (n, width) whose rows lie in memory maps. Indexing by a slice, a mask or indices gives an
    array."""

    dtype = np.dtype(np.float32)

    def __init__(self, maps: Sequence[np.ndarray], where: np.ndarray, *, width: int) -> None:
        """where: (n, 2) int64, the index of the map and of the row in it, for each row."""
        self._maps, self._where = maps, where
        self.shape = (len(where), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        where = self._where[which]
        out = np.empty((len(where), self.shape[1]), dtype=np.float32)
        for shard in np.unique(where[:, 0]):
            here = np.flatnonzero(where[:, 0] == shard)
            out[here] = self._maps[shard][where[here, 1]]
        return out

    def only(self, which: np.ndarray) -> "BankRows":
        """The rows of a mask or of indices, still memory-mapped."""
        return BankRows(self._maps, self._where[which], width=self.shape[1])


class Writer:
    """Adds rows, which are on disk when `add` returns. A writer merges only shards of its own."""

    def __init__(self, path: Path, *, width: int) -> None:
        self._path, self._width = path, width
        self._small: list[Path] = []
        for unfinished in path.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - unfinished.stat().st_mtime > STALE_S:
                    unfinished.unlink()

    def add(self, names: Sequence[bytes], features: np.ndarray) -> None:
        """features: (n, width) float32, a row per name. Raises ValueError for inf and nan, and InputError if the bank
        is read-only or was deleted."""
        assert features.shape == (len(names), self._width)
        assert features.dtype == np.float32
        if not np.isfinite(features).all():
            raise ValueError("features must not be inf or nan")
        if not names:
            return
        with self._explained_errors():
            self._small.append(write_shard(self._path, names, features))
        if len(self._small) >= MERGE_SHARDS:
            self.merge()

    def merge(self) -> None:
        """Merge the small shards into one, which is complete on disk before they are deleted."""
        if len(self._small) > 1:
            with self._explained_errors():
                parts = [read_shard(path, width=self._width) for path in self._small]
                names = [name for named, _ in parts for name in named]
                write_shard(self._path, names, np.concatenate([rows for _, rows in parts]))
            for path in self._small:
                path.unlink(missing_ok=True)
        self._small = []

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Raise InputError for what the user can solve. A full disk remains an OSError."""
        try:
            yield
        except FileNotFoundError:
            raise InputError(
                f"the feature bank {self._path} was deleted while it was being filled (headstart data bank --prune?); "
                "run the same command again to compute the features"
            ) from None
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise _not_writable(self._path, error) from None
            raise


def _not_writable(location: Path, error: OSError) -> InputError:
    return InputError(
        f"the feature bank cannot be stored in {location}: {error.strerror}; choose another folder with "
        "--runtime.bank DIR"
    )
