"""From manifest rows to batches: the table as a `datasets.Dataset`, each image decoded and transformed, then
collated."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from headstart.data.decode import UnreadableImage
from headstart.data.samples import Samples
from headstart.data.sampling import Blocks, EvalSampler, StepSampler, augmentation_seeds, keys_of
from headstart.data.source import Source, place_in
from headstart.data.transforms import Transform
from headstart.errors import OwnInputError
from headstart.runtime.worker_processes import worker_options

Batch = dict[str, torch.Tensor]
"""pixels: uint8 (n, 3, S, S), channels last in memory; label: int64 (n,), class indices; index: int64 (n,), the row of
the dataset."""


def as_dataset(samples: Samples, classes: Sequence[str]) -> datasets.Dataset:
    """The samples' own table, without a copy, plus the class index of each row.

    Columns id, path, sha256 (the memory of `samples.table`) and label (ClassLabel of `classes`, int64)."""
    names = ["id", "path", "sha256"]
    text = datasets.Value("string")
    features = datasets.Features(dict.fromkeys(names, text) | {"label": datasets.ClassLabel(names=list(classes))})
    columns = [*samples.table.select(names).columns, pa.array(samples.codes(classes))]
    table = pa.Table.from_arrays(columns, schema=features.arrow_schema)
    # nothing is cached under this fingerprint; to compute one, datasets would pickle the whole table
    return datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint="headstart")


class TransformedImages(Dataset[dict[str, Any]]):
    """Item (index, epoch) -> pixels, label and index of a row, augmented with the random seed of (seed, epoch, id).

    rows: of `as_dataset`; source: where their files are read. With balanced classes the epoch is how often the sample
    was drawn before. Raises OwnInputError if a file has become unreadable since the scan."""

    def __init__(self, rows: datasets.Dataset, source: Source, transform: Transform, *, seed: int) -> None:
        self.rows, self.source, self.transform, self.seed = rows, source, transform, seed
        self.keys = keys_of(rows.data.column("id").to_pylist())
        transform.expect(rows.data.column("sha256").to_pylist())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, epoch = item
        return {"pixels": self.pixels(index, epoch), "label": self.value("label", index), "index": index}

    def value(self, column: str, index: int) -> Any:
        """Of the Arrow table of the dataset: `rows[index]` formats the whole row, which takes 20 times as long."""
        return self.rows.data.column(column)[index].as_py()

    def label(self, index: int) -> str:
        return str(self.rows.features["label"].int2str(self.value("label", index)))

    def pixels(self, index: int, epoch: int) -> torch.Tensor:
        """uint8 (3, S, S)."""
        content = self.value("sha256", index)
        return self.transform.of(content, self.seed_of(index, epoch), lambda: self.decoded(index))

    def seed_of(self, index: int, epoch: int) -> int:
        return int(augmentation_seeds(self.keys[index : index + 1], seed=self.seed, epoch=epoch)[0])

    @property
    def item_bytes(self) -> int:
        return 3 * self.transform.image_size**2

    def decoded(self, index: int) -> Image.Image:
        path = self.value("path", index)
        try:
            return self.transform.decode(self.source.read(path))
        except (UnreadableImage, OSError) as error:
            raise OwnInputError(
                f"{place_in(self.source, path)} was readable when the run began and is not now: {error}"
            ) from None


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    return {
        "pixels": torch.stack([item["pixels"].permute(1, 2, 0) for item in items]).permute(0, 3, 1, 2),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }


def train_loader(
    rows: datasets.Dataset,
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    accumulation: int,
    num_steps: int,
    start_step: int,
    seed: int,
    num_workers: int,
    labels: np.ndarray | None = None,
    blocks: Blocks | None = None,
    images: type[TransformedImages] = TransformedImages,
    collate_fn: Callable[..., Any] = collate,
) -> DataLoader[Any]:
    """All batches of the run in one pass, so that workers start once and read ahead during validation.

    labels: (n,) int, class indices if the classes are to be balanced; blocks: samples that are shuffled together;
    images, collate_fn: what makes an item and a batch."""
    items = images(rows, source, transform, seed=seed)
    sampler = StepSampler(
        items.keys,
        batch_size=batch_size,
        num_steps=num_steps,
        seed=seed,
        start_step=start_step,
        accumulation=accumulation,
        labels=labels,
        blocks=blocks,
    )
    return _loader(items, sampler, num_workers=num_workers, batch_size=batch_size, collate_fn=collate_fn)


def eval_loader(
    rows: datasets.Dataset, source: Source, transform: Transform, *, batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Every row once, in order."""
    sampler = EvalSampler(len(rows), batch_size=batch_size)
    items = TransformedImages(rows, source, transform, seed=0)
    return _loader(items, sampler, num_workers=num_workers, batch_size=batch_size)


def _loader(
    items: TransformedImages,
    sampler: StepSampler | EvalSampler,
    *,
    num_workers: int,
    batch_size: int,
    collate_fn: Callable[..., Any] = collate,
) -> DataLoader[Any]:
    num_workers = min(num_workers, len(sampler))
    return DataLoader(
        items,
        batch_sampler=sampler,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        **worker_options(num_workers, collate_fn, prefetch=4, batch_bytes=batch_size * items.item_bytes),
    )
