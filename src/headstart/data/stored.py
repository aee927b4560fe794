"""A dataset of the datasets library: saved on disk, or on the Hub by name."""

from dataclasses import dataclass
from typing import Any

import datasets

from headstart.config import DataConfig
from headstart.data import columns
from headstart.data.listed import entries_of
from headstart.data.samples import Scan
from headstart.errors import InputError


@dataclass(frozen=True)
class StoredDataset:
    """An image is named SPLIT/ROW; its bytes stay in the dataset's memory-mapped tables."""

    root: str
    data: DataConfig
    parts: dict[str, datasets.Dataset]

    @staticmethod
    def open(data: DataConfig) -> "StoredDataset":
        root = data.root
        try:
            if root.startswith("hf://"):
                found = datasets.load_dataset(root.removeprefix("hf://"))
            else:
                found = datasets.load_from_disk(root)
        except Exception as error:  # datasets, huggingface_hub, fsspec and pyarrow raise what they like
            raise InputError(f"{root} cannot be loaded as a dataset: {' '.join(str(error).split())[:300]}") from None
        parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"all": found}
        return StoredDataset(root, data, {name: _undecoded(part, data, root) for name, part in parts.items()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredDataset) and (self.root, self.data) == (other.root, other.data)

    __hash__ = None  # type: ignore[assignment]

    def scan(self) -> Scan:
        first = next(iter(self.parts.values()))
        label = columns.label_column(self.data, first.column_names, where=self.root)
        group = columns.group_column(self.data, first.column_names, where=self.root)
        several = len(self.parts) > 1

        def rows() -> Any:
            for name, part in self.parts.items():
                values = part[label]
                feature = part.features[label]
                named = feature.int2str if isinstance(feature, datasets.ClassLabel) else lambda value: value
                groups = part[group] if group else [None] * len(part)
                for number, (value, member) in enumerate(zip(values, groups, strict=True)):
                    known = value is not None and value != -1  # -1: how datasets marks what has no class
                    yield {
                        "path": f"{name}/{number}",
                        "label": named(value) if known else None,
                        "split": name,
                        "group": member,
                    }

        def stamp(path: str) -> str:
            return str(self.parts[path.rpartition("/")[0]]._fingerprint)

        split = "split" if several else None
        return entries_of(rows(), image="path", label="label", split=split, group="group", stamp=stamp, where=self.root)

    def read(self, path: str) -> bytes:
        name, _, number = path.rpartition("/")
        part = self.parts[name]
        image = part[int(number)][part.column_names[0]]
        if image is None:
            raise OSError("no image in this row")
        if image["bytes"] is not None:
            return bytes(image["bytes"])
        with open(image["path"], "rb") as file:
            return file.read()


def _undecoded(part: datasets.Dataset, data: DataConfig, root: str) -> datasets.Dataset:
    """The same rows, the column of images first and as bytes or a path."""
    images = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
    column = data.image_column or (images[0] if images else columns.image_column(data, part.column_names, where=root))
    if column not in images:
        raise InputError(
            f"{root}: the column {column!r} holds no images ({part.features.get(column)}); its columns are {', '.join(part.column_names)}"
        )
    part = part.cast_column(column, datasets.Image(decode=False))
    return part.select_columns([column, *(name for name in part.column_names if name != column)])
