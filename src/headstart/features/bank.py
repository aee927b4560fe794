"""The feature bank: outputs of a frozen trunk on disk, found again by what they were computed from.

A bank is a folder per key (trunk and preprocessing), and in it shards: safetensors files with rows of features, each
row named by the content of its image and the view of it. Shards are written whole or not at all and never change,
so runs may share a bank without a lock: each writes shards of its own names and reads the union of all.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import InputError
from headstart.files import cache_folder, write_atomically

EVAL_TRANSFORM = "eval"
STALE_S = 3600.0  # an unfinished file of this age has no writer any more
MERGE_SHARDS = 64  # so many small shards of one writer become a large one
_SCHEMA = 1
_ROW_BYTES = 16  # of the name of a row


def default_location() -> Path:
    """XDG_CACHE_HOME/headstart/bank, by default under ~/.cache."""
    return cache_folder() / "bank"


def bank_key(*, weights_sha256: str, form: str, preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a feature besides the image and its view. Its hash names the folder."""
    return {"schema": _SCHEMA, "weights_sha256": weights_sha256, "form": form, "preprocess": dict(preprocess)}


def row_name(sha256: str, transform: str) -> bytes:
    """16 bytes: of the image's content and its view."""
    return hashlib.blake2b(f"{sha256} {transform}".encode(), digest_size=_ROW_BYTES).digest()


@dataclass(frozen=True)
class Damaged:
    """A shard that is not as it was written. Its rows are computed anew."""

    path: Path
    reason: str


class Bank:
    """The rows of one key. Opening reads and checks every shard; features stay memory-mapped."""

    def __init__(self, location: Path, key: Mapping[str, Any], *, width: int) -> None:
        """Raises InputError if there is no bank of this key at `location` and none can be made. One that cannot be
        written is read."""
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        self.path = location / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.width = width
        self.damaged: list[Damaged] = []
        self._places: dict[bytes, tuple[np.ndarray, int]] = {}
        self._seen: set[str] = set()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / "key.json").exists():
                _write_atomically(self.path / "key.json", (json.dumps(key, indent=2, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise _cannot_be_kept(location, error) from None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # last used: for pruning
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: bytes) -> bool:
        return name in self._places

    def refresh(self) -> None:
        """Take in the shards that were finished since, by whatever process. Damaged ones are listed and left out."""
        while not self._take_in_new_shards():
            pass

    def _take_in_new_shards(self) -> bool:
        """False if a shard went away meanwhile: its writer has merged it into one that the list may not have had."""
        complete = True
        for path in sorted(self.path.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            try:
                names, features = _read_shard(path, width=self.width)
            except FileNotFoundError:
                complete = False
                continue
            except ValueError as error:
                self.damaged.append(Damaged(path, str(error)))
                self._seen.add(path.name)
                continue
            self._seen.add(path.name)
            for row, name in enumerate(names):
                self._places.setdefault(name, (features, row))
        return complete

    def remove_damaged(self) -> None:
        """Delete the files that `damaged` names: once their rows are stored anew nobody needs them."""
        for damaged in self.damaged:
            damaged.path.unlink(missing_ok=True)

    def rows(self, names: Sequence[bytes]) -> "BankRows":
        """The rows of these names, in this order, left in the memory maps. Raises KeyError for one that is not there."""
        shards: dict[int, int] = {}
        maps: list[np.ndarray] = []
        where = np.empty((len(names), 2), dtype=np.int64)
        for position, name in enumerate(names):
            features, row = self._places[name]
            shard = shards.setdefault(id(features), len(maps))
            if shard == len(maps):
                maps.append(features)
            where[position] = shard, row
        return BankRows(maps, where, width=self.width)

    def writer(self) -> "Writer":
        return Writer(self.path, width=self.width)


class BankRows:
    """A float32 matrix (n, width) whose rows lie in memory maps; a slice, a mask or indices give an ordinary array."""

    dtype = np.dtype(np.float32)

    def __init__(self, maps: Sequence[np.ndarray], where: np.ndarray, *, width: int) -> None:
        """where: (n, 2) int64, (map, row in it) of each row."""
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
        """The rows of a mask or of indices, left where they are."""
        return BankRows(self._maps, self._where[which], width=self.shape[1])


class Writer:
    """Adds rows; what `add` was given is on disk when it returns. Only the writer's own shards are merged."""

    def __init__(self, path: Path, *, width: int) -> None:
        self._path, self._width = path, width
        self._small: list[Path] = []
        for left in path.glob(".*.tmp"):  # of writers that were killed
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE_S:
                    left.unlink()

    def add(self, names: Sequence[bytes], features: np.ndarray) -> None:
        """features: float32 (n, width), a row per name. Raises ValueError for inf and nan, InputError if the bank cannot be
        written or is gone."""
        assert features.shape == (len(names), self._width)
        assert features.dtype == np.float32
        if not np.isfinite(features).all():
            raise ValueError("inf and nan are no features")
        if not names:
            return
        with self._in_words():
            self._small.append(_write_shard(self._path, names, features))
        if len(self._small) >= MERGE_SHARDS:
            self.merge()

    def merge(self) -> None:
        """Small shards into one. The large one is complete on disk before the small ones go."""
        if len(self._small) > 1:
            with self._in_words():
                parts = [_read_shard(path, width=self._width) for path in self._small]
                names = [name for named, _ in parts for name in named]
                _write_shard(self._path, names, np.concatenate([rows for _, rows in parts]))
            for path in self._small:
                path.unlink(missing_ok=True)
        self._small = []

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """What the user can mend, as InputError; a full disk stays what it is."""
        try:
            yield
        except FileNotFoundError:
            raise InputError(
                f"the feature bank {self._path} was deleted while it was being filled (headstart data bank --prune?); "
                "the same command computes the features anew"
            ) from None
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise _cannot_be_kept(self._path, error) from None
            raise


@dataclass(frozen=True)
class Stored:
    """One key's folder, as `headstart data bank` lists it."""

    name: str
    path: Path
    key: Mapping[str, Any]
    num_shards: int
    num_bytes: int
    used: float  # seconds since the epoch


def stored(location: Path) -> list[Stored]:
    """What is in a bank, the most recently used first."""
    found = []
    for path in location.glob("*/key.json") if location.is_dir() else []:
        folder = path.parent
        try:
            key = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            key = {}
        shards = [shard.stat() for shard in folder.glob("*.safetensors")]
        used = folder.stat().st_mtime
        found.append(Stored(folder.name, folder, key, len(shards), sum(shard.st_size for shard in shards), used))
    return sorted(found, key=lambda entry: -entry.used)


def prune(location: Path, *, name: str | None = None, unused_days: float | None = None) -> list[Stored]:
    """Delete the keys whose name starts with `name` ("all": every one), or that nobody used for so many days.

    Returns what went. Raises InputError if the name matches none, for both at once and for a number of days not above 0.
    """
    if name is not None and unused_days is not None:
        raise InputError("--prune KEY and --prune_unused DAYS are two ways to choose what to delete; use one of them")
    if unused_days is not None and not (math.isfinite(unused_days) and unused_days > 0):
        raise InputError(
            f"--prune_unused is {unused_days}; use a number of days above 0, or --prune all to delete every key"
        )
    entries = stored(location)
    if name is not None:
        gone = [entry for entry in entries if name == "all" or entry.name.startswith(name)]
        if not gone and name != "all":
            raise InputError(f"{location} has no key {name}; headstart data bank lists them")
    else:
        assert unused_days is not None
        gone = [entry for entry in entries if time.time() - entry.used > unused_days * 86400]
    for entry in gone:
        shutil.rmtree(entry.path)
    return gone


def _cannot_be_kept(location: Path, error: OSError) -> InputError:
    return InputError(
        f"the feature bank cannot be kept in {location}: {error.strerror}; name another place with --runtime.bank DIR"
    )


def _write_shard(folder: Path, names: Sequence[bytes], features: np.ndarray) -> Path:
    """safetensors: features float32 (n, width), names uint8 (n, 16); the header has a sha256 over both."""
    rows = np.ascontiguousarray(features, dtype="<f4")
    packed = np.frombuffer(b"".join(names), dtype=np.uint8)
    payload = rows.tobytes() + packed.tobytes()
    header = {
        "__metadata__": {"format": "pt", "schema": str(_SCHEMA), "sha256": hashlib.sha256(payload).hexdigest()},
        "features": {"dtype": "F32", "shape": list(rows.shape), "data_offsets": [0, rows.nbytes]},
        "names": {
            "dtype": "U8",
            "shape": [len(names), _ROW_BYTES],
            "data_offsets": [rows.nbytes, rows.nbytes + packed.nbytes],
        },
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = folder / f"{uuid.uuid4().hex}.safetensors"
    _write_atomically(path, len(text).to_bytes(8, "little") + text + payload)
    return path


def _read_shard(path: Path, *, width: int) -> tuple[list[bytes], np.ndarray]:
    """Names and memory-mapped features (n, width). Raises ValueError with the reason if the file is not whole."""
    if path.stat().st_size < 8:
        raise ValueError("truncated")
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    try:
        header = json.loads(whole[8:start].tobytes())
        num_rows, columns = header["features"]["shape"]
        expected = header["__metadata__"]["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("the header is damaged") from None
    split = start + num_rows * columns * 4
    if columns != width or len(whole) != split + num_rows * _ROW_BYTES:
        raise ValueError(f"{len(whole)} bytes, not those of {num_rows} rows")
    if hashlib.sha256(whole[start:].data).hexdigest() != expected:
        raise ValueError("the checksum does not match")
    features = whole[start:split].view("<f4").reshape(num_rows, columns)
    packed = whole[split:].tobytes()
    return [packed[at : at + _ROW_BYTES] for at in range(0, len(packed), _ROW_BYTES)], features


def _write_atomically(path: Path, content: bytes) -> None:
    write_atomically(path, lambda staging: staging.write_bytes(content))
