"""A dataset of the datasets library: saved on disk, or on the Hub by name."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import datasets

from headstart.config import DataConfig
from headstart.data.source import PARTS, Entry, Scan, Skipped, Source
from headstart.data.sources import columns
from headstart.data.sources.columns import Columns, collect, text
from headstart.errors import InputError
from headstart.files import read_regular
from headstart.wording import one_line

_OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass
class StoredDataset(Source):
    """Images are named SPLIT/ROW; their bytes stay in the dataset's memory-mapped tables. images: of each split, its
    one column of images, undecoded."""

    root: str
    data: DataConfig
    columns = columns.ALL

    def __post_init__(self) -> None:
        root = self.root
        try:
            if root.startswith("hf://"):
                found = datasets.load_dataset(_name_on_the_hub(root))
            else:
                found = datasets.load_from_disk(root)
        except Exception as error:  # datasets, huggingface_hub, fsspec and pyarrow raise many things
            forbidden = [name for name in _OFFLINE if os.environ.get(name, "0").upper() in ("1", "ON", "YES", "TRUE")]
            if root.startswith("hf://") and forbidden:
                raise InputError(
                    f"{root} cannot be loaded from the cache, and {forbidden[0]}={os.environ[forbidden[0]]} forbids "
                    f"the network; unset {forbidden[0]} to download it ({one_line(error)[:200]})"
                ) from None
            if root.startswith("hf://"):
                raise InputError(
                    f"{root} cannot be loaded from the Hub; check the name and the connection, and for a private "
                    f"dataset log in with 'hf auth login' ({one_line(error)[:300]})"
                ) from None
            raise InputError(f"{root} cannot be loaded as a dataset: {one_line(error)[:300]}") from None
        self.splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"all": found}
        self.images = {name: _images(rows, self.data, root) for name, rows in self.splits.items()}

    @property
    def identity(self) -> str:
        return f"{super().identity}\n{self.data.image_column}"

    def scan(self) -> Scan:
        skipped: list[Skipped] = []
        has_test = len(self.splits) > 1 and any(columns.split_named(name) == "test" for name in self.splits)
        found = collect(self._entries(skipped), skipped, where=self.root)
        return replace(found, has_test=found.has_test or has_test)

    def _entries(self, skipped: list[Skipped]) -> Iterator[Entry]:
        several = len(self.splits) > 1
        for name, rows in self.splits.items():
            where = f"{self.root}, {name}" if several else self.root
            split = columns.split_named(name) if several else None
            try:
                used = Columns.of(self.data, rows.column_names, where=where, split=not several)
            except InputError as error:
                if split in PARTS:
                    raise
                skipped.append(Skipped(f"split {name!r}", str(error)))  # a test set may come without classes
                continue
            feature = rows.features[used.label]
            classes = [text(known) for known in feature.names] if isinstance(feature, datasets.ClassLabel) else []
            values = [rows[column][:] for column in used.names]
            for number, row in enumerate(zip(*values, strict=True)):
                yield used.entry(
                    f"{name}/{number}",
                    dict(zip(used.names, row, strict=True)),
                    where=f"{where}, row {number}",
                    classes=classes,
                    split=split,
                    stamp=str(rows._fingerprint),
                )

    def read(self, path: str) -> bytes:
        name, _, number = path.rpartition("/")
        rows = self.images[name]
        image = rows[int(number)][rows.column_names[0]]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise OSError("no image in this row")
        return read_regular(Path(image["path"])) if image["bytes"] is None else bytes(image["bytes"])


def _name_on_the_hub(root: str) -> str:
    """hf://NAME or hf://datasets/NAME as load_dataset takes it. A local folder of this name would precede the Hub."""
    name = root.removeprefix("hf://").removeprefix("datasets/")
    return f"hf://datasets/{name}" if os.path.exists(name) else name


def _images(rows: datasets.Dataset, data: DataConfig, root: str) -> datasets.Dataset:
    """The column of images alone, as bytes or paths."""
    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    column = data.image_column or (
        images[0] if images else columns.required("image_column", data, rows.column_names, where=root)
    )
    if column not in images:
        raise InputError(
            f"{root}: the column {column!r} holds no images ({rows.features.get(column)}); its columns are "
            f"{', '.join(rows.column_names)}"
        )
    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
