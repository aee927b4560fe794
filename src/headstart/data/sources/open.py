"""Which kind of source `data.root` names. A new kind is one function here and its place in OPENERS."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from headstart.config import DataConfig
from headstart.data.folder_walk import walk
from headstart.data.source import Source
from headstart.data.sources import columns
from headstart.data.sources.folders import ClassFolders
from headstart.errors import InputError

SHARDS = (".tar", ".parquet", ".tar.gz", ".tgz")


def open_source(data: DataConfig, *, to_evaluate: bool = False, asked: Collection[str] = columns.ALL) -> Source:
    """The source of data.root; its content is known after `scan`. Raises InputError if there is nothing of that name.

    to_evaluate: the images are not trained on, so test shards are included. asked: keys data.*_column that
    raise InputError if they are set and the source has no such column."""
    source = next(found for opener in OPENERS if (found := opener(data, to_evaluate)) is not None)
    for key in asked:
        if getattr(data, key) is not None and key not in source.columns:
            raise InputError(
                f"data.{key} is {getattr(data, key)!r}, and {data.root} has no column for it: "
                f"{source.instead_of_columns}; leave it null"
            )
    return source


def _stored_dataset(data: DataConfig, to_evaluate: bool) -> Source | None:
    path = Path(data.root)
    if not (data.root.startswith("hf://") or any((path / n).is_file() for n in ("state.json", "dataset_dict.json"))):
        return None
    from headstart.data.sources.hf_dataset import StoredDataset

    return StoredDataset.open(data)


def _zip(data: DataConfig, to_evaluate: bool) -> Source | None:
    if not _is_file(data.root, ".zip"):
        return None
    from headstart.data.sources.zipped import ZippedFolders

    return ZippedFolders(data.root)


def _table(data: DataConfig, to_evaluate: bool) -> Source | None:
    if not _is_file(data.root, *columns.TABLES):
        return None
    from headstart.data.sources.table import ListedImages

    return ListedImages(data.root, data)


def _shards(data: DataConfig, to_evaluate: bool) -> Source | None:
    """A shard, a URL, a pattern, or a folder with shards and without class folders of images."""
    if os.path.isdir(data.root):
        named = _holds_shards(data.root)
    else:
        named = _is_file(data.root, *SHARDS) or (
            not os.path.isfile(data.root) and any(sign in data.root for sign in ("://", "*", "{"))
        )
    if not named:
        return None
    from headstart.data.sources.shards import open_shards

    return open_shards(data, tests=to_evaluate)


def _folder(data: DataConfig, to_evaluate: bool) -> Source | None:
    return ClassFolders(data.root)


OPENERS: tuple[Callable[[DataConfig, bool], Source | None], ...] = (_stored_dataset, _zip, _table, _shards, _folder)
"""(data, to_evaluate) -> the source, None if data.root names another kind. The first one that fits is used. Each
imports its libraries only then."""


def _is_file(root: str, *suffixes: str) -> bool:
    return os.path.isfile(root) and root.lower().endswith(suffixes)


def _holds_shards(root: str) -> bool:
    """Looks at names until the first image in a folder below the root."""
    shards = False
    for found in walk(Path(root)):
        if found.kind == "image" and "/" in found.path:
            return False
        shards = shards or (found.path.lower().endswith(SHARDS) and found.kind == "other file")
    return shards
