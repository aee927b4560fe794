"""Which kind of source `data.root` names. A new kind is a case of `_open`."""

import os
from collections.abc import Collection
from pathlib import Path

from headstart.config import DataConfig
from headstart.config_io import repeated_runs
from headstart.data.folder_walk import is_run, walk
from headstart.data.source import Source
from headstart.data.sources import columns
from headstart.data.sources.folders import ClassFolders
from headstart.errors import InputError
from headstart.files import check_reachable
from headstart.wording import command_line

SHARDS = (".tar", ".parquet", ".tar.gz", ".tgz")
SIGNS = ("://", "*", "{")
"""Of a URL or a pattern, unless a file or folder of this name exists."""


def open_source(data: DataConfig, *, to_evaluate: bool = False, asked: Collection[str] = columns.ALL) -> Source:
    """The source of data.root; its content is known after `scan`. Raises InputError if there is nothing of that name.

    to_evaluate: the images are not trained on, so test shards are included. asked: keys data.*_column that
    raise InputError if they are set and the source has no such column."""
    source = _open(data, to_evaluate=to_evaluate)
    for key in asked:
        if getattr(data, key) is not None and key not in source.columns:
            raise InputError(
                f"data.{key} is {getattr(data, key)!r}, and {data.root} has no column for it: "
                f"{source.instead_of_columns}; leave it null"
            )
    return source


def _open(data: DataConfig, *, to_evaluate: bool) -> Source:
    """The first kind that fits. Each imports its libraries only then."""
    root = data.root
    if not any(sign in root for sign in SIGNS):
        check_reachable(root)
    if os.path.isfile(os.path.join(root, "config.yaml")) and (is_run(os.listdir(root)) or repeated_runs(Path(root))):
        raise InputError(
            f"{root} is the folder of a run, not of images; to continue it: {command_line('resume', root)}"
        )
    if root.startswith("hf://") or any(
        os.path.isfile(os.path.join(root, n)) for n in ("state.json", "dataset_dict.json")
    ):
        from headstart.data.sources.hf_dataset import StoredDataset

        return StoredDataset(root, data)
    if _is_file(root, ".zip"):
        from headstart.data.sources.zipped import ZippedFolders

        return ZippedFolders(root)
    if _is_file(root, *columns.TABLES):
        from headstart.data.sources.table import ListedImages

        return ListedImages(root, data)
    if _names_shards(root):
        from headstart.data.sources.shards import open_shards

        return open_shards(data, tests=to_evaluate)
    return ClassFolders(root)


def _is_file(root: str, *suffixes: str) -> bool:
    return os.path.isfile(root) and root.lower().endswith(suffixes)


def _names_shards(root: str) -> bool:
    """A shard, a URL, a pattern, or a folder with shards and without class folders of images."""
    if not os.path.isdir(root):
        signs = not os.path.isfile(root) and any(sign in root for sign in SIGNS)
        return signs or _is_file(root, *SHARDS)
    shards = False
    for found in walk(Path(root)):  # names, until the first image in a folder below the root
        if found.kind == "image" and "/" in found.path:
            return False
        shards = shards or (found.path.lower().endswith(SHARDS) and found.kind == "other file")
    return shards
