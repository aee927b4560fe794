"""Many images in few large files: webdataset's tar shards and parquet shards, here or behind a URL, never unpacked.

Of a tar shard each image is read at its place; of a parquet shard the row group that an image lies in is read, and the
last ones are kept. So what a process holds does not grow with the data, and the order of the images is ours.
"""

import json
import os
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.config import DataConfig
from headstart.data import columns
from headstart.data.folders import EXTENSIONS, check_name, is_hidden, stamp_of
from headstart.data.listed import ListedImages, check_splits, text
from headstart.data.samples import Entry, PerProcess, Scan, Skipped, Source
from headstart.errors import InputError

KEPT_BYTES = 256 * 2**20  # of parquet row groups, per process


def open_shards(data: DataConfig) -> Source:
    """The shards that data.root names: one, a folder of them, a pattern with * or {000..009}, a URL of those."""
    filesystem, names = _find(data.root)
    kinds = {_kind(name) for name in names}
    if not names:
        raise InputError(f"{data.root} names no .tar or .parquet file")
    if len(kinds) > 1:
        raise InputError(f"{data.root} names {' and '.join(sorted(kinds))} files; give one kind")
    kind = kinds.pop()
    if kind == "gz":
        raise InputError(f"{names[0]} is compressed, so no image can be read on its own; decompress it (gunzip)")
    shards = {short: Shard(filesystem, name, _stamp(filesystem, name)) for short, name in _short(names).items()}
    if kind == "tar":
        return TarShards(data.root, data, shards)
    source = ParquetShards(data.root, data, shards)
    return source if source.holds_images() else ListedImages(data.root, data)


@dataclass(frozen=True)
class Shard:
    filesystem: fsspec.AbstractFileSystem
    name: str
    stamp: str

    @property
    def split(self) -> str | None:
        """By its folder or the beginning of its name, as in train/00.tar and validation-00000-of-00002.parquet."""
        path = PurePosixPath(self.name)
        for part in (path.parent.name, re.split(r"[-_.0-9]", path.name)[0]):
            if columns.split_named(part):
                return columns.split_named(part)
        return None

    @property
    def tests(self) -> bool:
        path = PurePosixPath(self.name)
        return "test" in (path.parent.name.lower(), re.split(r"[-_.0-9]", path.name)[0].lower())


@dataclass(frozen=True)
class TarShards:
    """An image is named SHARD/MEMBER. Its class is in the member of the same name with .cls or .json."""

    root: str
    data: DataConfig
    shards: dict[str, Shard]
    _places: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def scan(self) -> Scan:
        entries: list[Entry] = []
        skipped: list[Skipped] = []
        self._places.clear()
        for short, shard in self.shards.items():
            if shard.tests:
                skipped.append(Skipped(short, "a test shard: neither trains nor measures"))
                continue
            for key, members in _members(shard, self.root).items():
                images = [name for name in members if PurePosixPath(name).suffix.lower() in EXTENSIONS]
                label = self._label(shard, key, members)
                if not images or not label:
                    skipped.append(
                        Skipped(f"{short}/{key}", "no image" if not images else "no class: neither .cls nor .json")
                    )
                    continue
                name = f"{short}/{images[0]}"
                check_name(name)
                self._places[name] = members[images[0]]
                entries.append(Entry(name, label, shard.split, stamp=shard.stamp))
                skipped += [Skipped(f"{short}/{more}", "a second image of the same sample") for more in images[1:]]
        return Scan(check_splits(entries, where=self.root), skipped)

    def read(self, path: str) -> bytes:
        if not self._places:
            self.scan()  # in a process that was not forked
        start, size = self._places[path]
        shard = self.shards[_shard_of(path, self.shards)]
        return bytes(shard.filesystem.cat_file(shard.name, start=start, end=start + size))

    def _label(self, shard: Shard, key: str, members: Mapping[str, tuple[int, int]]) -> str:
        """The text of .cls, or the label column of .json."""
        for name, (start, size) in members.items():
            kind = PurePosixPath(name).suffix.lower()
            if kind not in (".cls", ".json"):
                continue
            content = shard.filesystem.cat_file(shard.name, start=start, end=start + size)
            if kind == ".cls":
                return str(content, "utf-8", "replace").strip()
            try:
                values = json.loads(content)
            except ValueError:
                continue
            if isinstance(values, dict):
                found = columns.label_column(self.data, list(values), where=f"{shard.name}, {name}")
                return text(values[found])
        return ""


@dataclass(frozen=True)
class ParquetShards:
    """An image is named SHARD/ROW; a block of the manifest is a row group."""

    root: str
    data: DataConfig
    shards: dict[str, Shard]
    _files: PerProcess["_Files"] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_files", PerProcess(_Files, self.shards))

    def holds_images(self) -> bool:
        """Or only their paths."""
        return _binary(self._files.get().file(next(iter(self.shards))).schema_arrow) is not None

    def scan(self) -> Scan:
        entries: list[Entry] = []
        skipped: list[Skipped] = []
        for short, shard in self.shards.items():
            if shard.tests:
                skipped.append(Skipped(short, "a test shard: neither trains nor measures"))
                continue
            file = self._files.get().file(short)
            schema = file.schema_arrow
            label = columns.label_column(self.data, schema.names, where=shard.name)
            group = columns.group_column(self.data, schema.names, where=shard.name)
            named = _class_names(schema, label)
            row = 0
            for number in range(file.num_row_groups):
                values = file.read_row_group(number, columns=[label, *([group] if group else [])])
                groups = values.column(group).to_pylist() if group else [None] * values.num_rows
                for value, member in zip(values.column(label).to_pylist(), groups, strict=True):
                    path, row = f"{short}/{row}", row + 1
                    name = "" if value is None or value == -1 else named[value] if named else text(value)
                    if name:
                        block = f"{short}#{number}"
                        entries.append(Entry(path, name, shard.split, text(member), shard.stamp, block))
                    else:
                        skipped.append(Skipped(path, "no class"))
        return Scan(check_splits(entries, where=self.root), skipped)

    def read(self, path: str) -> bytes:
        short = _shard_of(path, self.shards)
        return self._files.get().image(short, int(path[len(short) + 1 :]), self.data.image_column)


class _Files:
    """Open parquet files and the row groups that were read last."""

    def __init__(self, shards: Mapping[str, Shard]) -> None:
        self._shards = shards
        self._open: dict[str, pq.ParquetFile] = {}
        self._kept: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def file(self, short: str) -> pq.ParquetFile:
        if short not in self._open:
            shard = self._shards[short]
            try:
                self._open[short] = pq.ParquetFile(shard.filesystem.open(shard.name))
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{shard.name} cannot be read as parquet: {error}") from None
        return self._open[short]

    def image(self, short: str, row: int, column: str | None) -> bytes:
        with self._lock:
            file, group = self.file(short), 0
            while row >= file.metadata.row_group(group).num_rows:
                row -= file.metadata.row_group(group).num_rows
                group += 1
            images = self._kept.pop((short, group), None)
            if images is None:
                images = self._row_group(file, group, column or _binary(file.schema_arrow))
            self._kept[(short, group)] = images
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        content = images[row].as_py()
        if content is None:
            raise OSError("no image in this row")
        return bytes(content)

    def _row_group(self, file: pq.ParquetFile, number: int, column: str | None) -> pa.Array:
        try:
            images = file.read_row_group(number, columns=[column]).column(column).combine_chunks()
        except (pa.ArrowException, KeyError) as error:
            raise OSError(f"row group {number} cannot be read: {error}") from None
        return images.field("bytes") if pa.types.is_struct(images.type) else images


def _members(shard: Shard, root: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Of each sample (webdataset's key: the name up to the first dot) its files, with their place in the shard."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with shard.filesystem.open(shard.name) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isfile() and not any(is_hidden(part) for part in path.parts):
                    key = str(path.parent / path.name.split(".")[0]).removeprefix("./")
                    samples.setdefault(key, {})[member.name] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{shard.name} cannot be read as tar: {error}") from None
    return samples


def _find(root: str) -> tuple[fsspec.AbstractFileSystem, list[str]]:
    try:
        filesystem, _ = fsspec.core.url_to_fs(re.sub(r"[{*].*", "", root))
        names: list[str] = []
        for pattern in _braces(root):
            path = (
                fsspec.core.strip_protocol(pattern)
                if "://" not in pattern or filesystem.protocol == "file"
                else pattern
            )
            if "*" in path:
                names += filesystem.glob(path)
            elif filesystem.isdir(path):
                names += [name for below in ("", "*/") for name in filesystem.glob(f"{path}/{below}*") if _kind(name)]
            else:
                names.append(path)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{root}: {error}") from None
    local = isinstance(filesystem, fsspec.implementations.local.LocalFileSystem)
    return filesystem, sorted(os.path.relpath(name) if local and not os.path.isabs(root) else name for name in names)


def _braces(pattern: str) -> Iterable[str]:
    """a-{000..002} and a-{x,y}, as webdataset writes them."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, listed = match.groups()
    values = listed.split(",") if listed else [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    for value in values:
        yield from _braces(pattern[: match.start()] + value + pattern[match.end() :])


def _kind(name: str) -> str:
    lowered = name.lower()
    return (
        "gz"
        if lowered.endswith((".tar.gz", ".tgz"))
        else lowered.rpartition(".")[2]
        if lowered.endswith((".tar", ".parquet"))
        else ""
    )


def _short(names: list[str]) -> dict[str, str]:
    """Names without the folder that they share, so that the shards may move."""
    common = (
        os.path.commonpath([os.path.dirname(name) for name in names]) if len(names) > 1 else os.path.dirname(names[0])
    )
    return {name[len(common) :].lstrip("/"): name for name in names}


def _shard_of(path: str, shards: Mapping[str, Shard]) -> str:
    """SHARD of SHARD/MEMBER; both may have slashes."""
    end = path.find("/")
    while path[:end] not in shards:
        end = path.index("/", end + 1)
    return path[:end]


def _stamp(filesystem: fsspec.AbstractFileSystem, name: str) -> str:
    try:
        if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
            return stamp_of(os.stat(name))
        return str(filesystem.ukey(name))
    except (OSError, NotImplementedError) as error:
        raise InputError(f"{name}: {error}") from None


def _binary(schema: pa.Schema) -> str | None:
    """The first column that holds files: bytes, or bytes and path as datasets stores images."""
    for column in schema:
        struct = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        if struct or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return str(column.name)
    return None


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """Those that datasets has written beside the data."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return []
