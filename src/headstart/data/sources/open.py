"""Which kind of data `data.root` names."""

import os
from collections.abc import Collection
from pathlib import Path

from headstart.config import DataConfig
from headstart.data.samples import Source
from headstart.data.sources.folders import ClassFolders, is_image, visible_files
from headstart.errors import InputError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
SHARDS = (".tar", ".parquet", ".tar.gz", ".tgz")
COLUMN_KEYS = ("image_column", "label_column", "split_column", "group_column")


def open_source(data: DataConfig, *, to_measure: bool = False, asked: Collection[str] = COLUMN_KEYS) -> Source:
    """What lies in it is found out by scanning. Raises InputError if there is nothing of that name.

    to_measure: the images are only measured, so that test shards take part. asked: the keys data.*_column that must not
    be ignored; InputError if one is set and the source has no such columns."""
    source = _open(data, to_measure=to_measure)
    for key in asked:
        if getattr(data, key) is not None and key not in source.columns:
            raise InputError(
                f"data.{key} is {getattr(data, key)!r}, and {data.root} has no column for it: "
                f"{_SAYS[type(source).__name__]}; leave it null"
            )
    return source


_FOLDERS = "the names of folders say class and split, and data.groups keeps images together"
_SAYS = {"ClassFolders": _FOLDERS, "ZippedFolders": _FOLDERS, "TarShards": "the name of a shard says train or val"}


def _open(data: DataConfig, *, to_measure: bool) -> Source:
    root = data.root
    path = Path(root)
    if root.startswith("hf://") or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from headstart.data.sources.hf_dataset import StoredDataset

        return StoredDataset.open(data)
    if path.is_file() and path.suffix.lower() == ".zip":
        from headstart.data.sources.zipped import ZippedFolders

        return ZippedFolders(root)
    if path.is_file() and path.suffix.lower() in TABLES:
        from headstart.data.sources.table import ListedImages

        return ListedImages(root, data)
    if _names_shards(root):
        from headstart.data.sources.shards import open_shards

        return open_shards(data, tests=to_measure)
    return ClassFolders(root)


def _names_shards(root: str) -> bool:
    """A URL, a pattern, a shard, or a folder that holds shards and no class folders of images."""
    if os.path.isfile(root):
        return root.lower().endswith(SHARDS)
    if os.path.isdir(root):
        return _holds_shards(root)
    return "://" in root or any(sign in root for sign in "*{")


def _holds_shards(root: str) -> bool:
    """Looks at names until the first image in a folder below the root."""
    found = False
    for folder, names in visible_files(root):
        if folder != root and any(is_image(name) for name in names):
            return False
        found = found or any(name.lower().endswith(SHARDS) for name in names)
    return found
