"""Which kind of data `data.root` names."""

from pathlib import Path

from headstart.config import DataConfig
from headstart.data.folders import ClassFolders, ZippedFolders
from headstart.data.samples import Source

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


def open_source(data: DataConfig, *, to_measure: bool = False) -> Source:
    """to_measure: the images are only measured, so a folder needs no train/. Raises InputError if there is nothing of
    that name. What lies in it is found out by scanning."""
    root = data.root
    path = Path(root)
    if root.startswith("hf://") or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from headstart.data.stored import StoredDataset

        return StoredDataset.open(data)
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZippedFolders(root)
    if path.is_file() and path.suffix.lower() in TABLES:
        from headstart.data.listed import ListedImages

        return ListedImages(root, data)
    if "://" in root or any(sign in root for sign in "*{") or _holds_shards(path):
        from headstart.data.shards import open_shards

        return open_shards(data)
    return ClassFolders(root, to_measure)


def _holds_shards(path: Path) -> bool:
    """A shard, or a folder of shards, itself or in train/ and the like."""
    if path.is_file():
        return path.name.lower().endswith((".tar", ".parquet", ".tar.gz", ".tgz"))
    return path.is_dir() and any(
        next(path.glob(f"{below}*{suffix}"), None) for below in ("", "*/") for suffix in (".tar", ".parquet")
    )
