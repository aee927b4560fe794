"""A dataset of the datasets library: saved on disk, or on the Hub by name."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import datasets

from headstart.config import DataConfig
from headstart.data.samples import PARTS, Entry, Scan, Skipped
from headstart.data.sources import columns
from headstart.data.sources.shard import place_of
from headstart.data.sources.table import class_name, collect, text
from headstart.errors import InputError
from headstart.files import read_regular
from headstart.wording import one_line

_OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class StoredDataset:
    """An image is named SPLIT/ROW; its bytes stay in the dataset's memory-mapped tables."""

    root: str
    data: DataConfig
    parts: dict[str, datasets.Dataset]
    images: dict[str, datasets.Dataset]  # of each part, its one column of images, undecoded
    columns: ClassVar[tuple[str, ...]] = ("image_column", "label_column", "split_column", "group_column")

    @staticmethod
    def open(data: DataConfig) -> "StoredDataset":
        root = data.root
        try:
            if root.startswith("hf://"):
                found = datasets.load_dataset(root.removeprefix("hf://"))
            else:
                found = datasets.load_from_disk(root)
        except Exception as error:  # datasets, huggingface_hub, fsspec and pyarrow raise what they like
            forbidden = [name for name in _OFFLINE if os.environ.get(name, "0").upper() in ("1", "ON", "YES", "TRUE")]
            if root.startswith("hf://") and forbidden:
                raise InputError(
                    f"{root} cannot be loaded from the cache, and {forbidden[0]}={os.environ[forbidden[0]]} forbids the network; "
                    f"unset {forbidden[0]} to download it ({one_line(error)[:200]})"
                ) from None
            raise InputError(f"{root} cannot be loaded as a dataset: {one_line(error)[:300]}") from None
        parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"all": found}
        return StoredDataset(root, data, parts, {name: _images(part, data, root) for name, part in parts.items()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredDataset) and (self.root, self.data) == (other.root, other.data)

    __hash__ = None  # type: ignore[assignment]

    @property
    def identity(self) -> str:
        return f"{place_of(self.root)}\n{self.data.image_column}"

    def scan(self) -> Scan:
        skipped: list[Skipped] = []
        scan = collect(self._entries(skipped), where=self.root)
        return Scan(scan.entries, skipped + scan.skipped)

    def _entries(self, skipped: list[Skipped]) -> Iterator[Entry]:
        several = len(self.parts) > 1
        for name, part in self.parts.items():
            where = f"{self.root}, {name}" if several else self.root
            own = columns.split_named(name) if several else None
            try:
                label = columns.label_column(self.data, part.column_names, where=where)
                group = columns.group_column(self.data, part.column_names, where=where)
            except InputError as error:
                if own in PARTS:
                    raise
                skipped.append(Skipped(f"split {name!r}", str(error)))  # the classes of a test set may be kept back
                continue
            asked = self.data.split_column is not None or not several
            split = columns.split_column(self.data, part.column_names, where=where) if asked else None
            feature = part.features[label]
            names = [text(known) for known in feature.names] if isinstance(feature, datasets.ClassLabel) else []
            values = {column: part[column][:] for column in (label, group, split) if column}
            for number, value in enumerate(values[label]):
                yield Entry(
                    f"{name}/{number}",
                    class_name(value, names, where=f"{where}, row {number}"),
                    columns.split_named(text(values[split][number])) if split else own,
                    text(values[group][number]) if group else "",
                    str(part._fingerprint),
                )

    def read(self, path: str) -> bytes:
        name, _, number = path.rpartition("/")
        part = self.images[name]
        image = part[int(number)][part.column_names[0]]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise OSError("no image in this row")
        return read_regular(Path(image["path"])) if image["bytes"] is None else bytes(image["bytes"])


def _images(part: datasets.Dataset, data: DataConfig, root: str) -> datasets.Dataset:
    """The column of images alone, as bytes or paths."""
    images = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
    column = data.image_column or (images[0] if images else columns.image_column(data, part.column_names, where=root))
    if column not in images:
        raise InputError(
            f"{root}: the column {column!r} holds no images ({part.features.get(column)}); its columns are {', '.join(part.column_names)}"
        )
    return part.select_columns([column]).cast_column(column, datasets.Image(decode=False))
