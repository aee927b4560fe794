"""Many images in a few large files, here or behind a URL, never unpacked: which files a name stands for, and their
kind."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from headstart.config import DataConfig
from headstart.data.folder_walk import is_hidden, stamp_of, walk
from headstart.data.source import PerProcess, Source
from headstart.data.sources.http_server import check_ranges, information
from headstart.data.sources.shard import Shard
from headstart.errors import InputError
from headstart.wording import one_line

_SIGNS = "*{"
_VERSION_KEYS = ("etag", "last-modified", "lastmodified", "last_modified", "mtime", "updated", "created", "md5hash")


def open_shards(data: DataConfig, *, tests: bool = False) -> Source:
    """The shards that data.root names: one, a folder of them, a pattern with * or {000..009}, a URL of those.

    tests: whether test shards are read as well; training does not use them, and they take long."""
    root = data.root
    shards = _find(root)
    kinds = {_kind(short) for short in shards}
    if not shards:
        raise InputError(
            f"{_path_of(root)} matches no .tar or .parquet file; name such a file, or a folder or pattern of them"
        )
    if "gz" in kinds:
        name = next(shard.name for short, shard in shards.items() if _kind(short) == "gz")
        raise InputError(f"{name} is compressed, so single images cannot be read; decompress it with gunzip")
    if len(kinds) > 1 or "" in kinds:
        what = " and ".join(f".{kind}" if kind else "other" for kind in sorted(kinds))
        raise InputError(f"{root} matches {what} files; name only .tar or only .parquet files")
    if kinds == {"tar"}:
        from headstart.data.sources.tar_shards import TarShards

        return TarShards(root, data, shards, tests)
    from headstart.data.sources.parquet_shards import ParquetShards
    from headstart.data.sources.table import ListedImages

    source = ParquetShards(root, data, shards, tests)
    if source.holds_images():
        return source
    (first, *others) = shards.values()
    if others or not isinstance(first.filesystem.get(), LocalFileSystem):
        raise InputError(
            f"the .parquet files of {root} contain no images, perhaps only their paths; name a single such file on "
            "this machine"
        )
    return ListedImages(first.name if os.path.isdir(root) else root, data)


def _find(root: str) -> dict[str, Shard]:
    """Short name -> shard, in the order of the names."""
    filesystem = PerProcess(_filesystem, root)
    try:
        files = filesystem.get()
        local = isinstance(files, LocalFileSystem)
        plain = files._strip_protocol(root) if local else root
        literal = local and os.path.exists(plain)  # a folder may have a name with braces
        signs = not literal and any(sign in _path_of(plain) for sign in _SIGNS)
        found: set[str] = set()
        for path in _braces(plain) if signs else [plain]:
            if "*" in _path_of(path) and not literal:
                escaped = re.sub(r"([\[?])", r"[\1]", path)  # only * is special here
                found |= {
                    name for name in files.glob(escaped) if _kind(name) and not is_hidden(name.rpartition("/")[2])
                }
            elif local and os.path.isdir(path):
                found |= _shards_below(path)
            elif not local and not _kind(path):
                found |= {
                    name
                    for name in files.find(path)
                    if _kind(name) and not any(map(is_hidden, _below(name, path).split("/")))
                }
            else:
                found.add(path)
        is_folder = os.path.isdir(plain) if literal else not signs and not _kind(plain)
        base = files._strip_protocol(plain if is_folder else _before_signs(_path_of(plain)).rpartition("/")[0])
        named = sorted((_below(_path_of(files._strip_protocol(name)), base), name) for name in found)
        check_ranges(files, [name for _, name in named])
        return {short: Shard(filesystem, name, short, _stamp(files, name)) for short, name in named}
    except InputError:
        raise
    except Exception as error:  # each file system of fsspec has its own errors
        raise InputError(f"{_path_of(root)} cannot be found or opened: {one_line(error)}") from None


def _shards_below(folder: str) -> set[str]:
    """Each file once, also where links lead to it several times."""
    paths = []
    for found in walk(Path(folder)):
        if found.kind == "unreadable":
            raise InputError(f"{folder}/{found.path}: {found.reason}; make it readable, as it may contain shards")
        if found.kind == "other file":
            paths.append(f"{folder}/{found.path}")
    return set({os.path.realpath(path): path for path in reversed(paths) if _kind(path)}.values())


def _filesystem(root: str) -> fsspec.AbstractFileSystem:
    return fsspec.core.url_to_fs(root if os.path.exists(root) else _before_signs(root))[0]


def _before_signs(pattern: str) -> str:
    return re.split(f"[{_SIGNS}]", pattern)[0]


def _below(name: str, base: str) -> str:
    """The name without the folder `base`, or without any folder if it does not lie there."""
    inside = name.startswith(base.rstrip("/") + "/")
    return name[len(base.rstrip("/")) + 1 :] if inside else name.rpartition("/")[2]


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


def _path_of(name: str) -> str:
    """A URL without its query, such as the signature of an address that is valid for some hours."""
    return name.partition("?")[0] if "://" in name else name


def _kind(name: str) -> str:
    lowered = _path_of(name).lower()
    if lowered.endswith((".tar.gz", ".tgz")):
        return "gz"
    return lowered.rpartition(".")[2] if lowered.endswith((".tar", ".parquet")) else ""


def _stamp(filesystem: fsspec.AbstractFileSystem, name: str) -> str:
    """Of a remote file: its size and what its server reports about its version; "" if that is nothing. Raises
    OSError."""
    if isinstance(filesystem, LocalFileSystem):
        return stamp_of(os.stat(name))
    about = information(filesystem, name)
    marks = [f"{key}={value}" for key, value in sorted(about.items()) if key.lower() in _VERSION_KEYS and value]
    return ";".join([str(about.get("size")), *marks]) if marks else ""
