"""From manifest rows to batches: a dataset of images and labels, the decoder, one view per image."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from headstart.arrow import strings
from headstart.data.decode import UnreadableImage
from headstart.data.samples import Samples
from headstart.data.sampling import Blocks, EvalSampler, StepSampler, augmentation_seeds, keys_of
from headstart.data.transforms import Transform
from headstart.errors import OwnInputError
from headstart.runtime.worker_processes import worker_options

Batch = dict[str, torch.Tensor]
"""pixels: uint8 (n, 3, S, S), channels last in memory; label: int64 (n,); index: int64 (n,), the row in the split's samples."""


def load_images(samples: Samples, classes: Sequence[str]) -> datasets.Dataset:
    """Columns image (undecoded: {"path", "bytes"}, its name in the source and null) and label (ClassLabel), one row per
    sample, in their order. The manifest is what says so: folder names, metadata files and depth cannot change it again."""
    names = strings(samples.column("path"))
    images = pa.StructArray.from_arrays([pa.nulls(len(samples), pa.binary()), names], names=["bytes", "path"])
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(classes))}
    )
    table = pa.Table.from_arrays([images, pa.array(samples.codes(classes))], schema=features.arrow_schema)
    return datasets.Dataset(datasets.table.InMemoryTable(table))


class TransformedImages(Dataset[dict[str, Any]]):
    """Item (index, epoch) -> the sample's view in that epoch (or, of balanced classes, when it was drawn so often before).
    Raises OwnInputError if the file became unreadable."""

    def __init__(self, rows: datasets.Dataset, samples: Samples, transform: Transform, *, seed: int) -> None:
        self.rows, self.samples = rows, samples
        self.keys = keys_of(samples.column("id"))
        self.transform = transform
        transform.expect(samples.column("sha256"))
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, epoch = item
        return {"pixels": self.pixels(index, epoch), "label": self.rows[index]["label"], "index": index}

    def pixels(self, index: int, epoch: int) -> torch.Tensor:
        """uint8 (3, S, S)."""
        return self.transform.of(self.samples[index].sha256, self.seed_of(index, epoch), lambda: self.decoded(index))

    def seed_of(self, index: int, epoch: int) -> int:
        return int(augmentation_seeds(self.keys[index : index + 1], seed=self.seed, epoch=epoch)[0])

    @property
    def item_bytes(self) -> int:
        """About, of the pixels of one item."""
        return 3 * self.transform.image_size**2

    def decoded(self, index: int) -> Image.Image:
        path = self.rows[index]["image"]["path"]
        try:
            return self.transform.decode(self.samples.source.read(path))
        except (UnreadableImage, OSError) as error:
            raise OwnInputError(
                f"{self.samples.where(path)} was readable when the run began and is not now: {error}"
            ) from None


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    return {
        "pixels": torch.stack([item["pixels"].permute(1, 2, 0) for item in items]).permute(0, 3, 1, 2),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }


def train_loader(
    rows: datasets.Dataset,
    samples: Samples,
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

    labels: (n,) int, the class of each sample if the classes are to be balanced; blocks: what is shuffled together;
    images, collate_fn: what makes an item and a batch."""
    items = images(rows, samples, transform, seed=seed)
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
    rows: datasets.Dataset, samples: Samples, transform: Transform, *, batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Every row once, in order."""
    items = TransformedImages(rows, samples, transform, seed=0)
    sampler = EvalSampler(len(rows), batch_size=batch_size)
    return _loader(items, sampler, num_workers=num_workers, batch_size=batch_size)


def _loader(
    items: TransformedImages,
    sampler: StepSampler | EvalSampler,
    *,
    num_workers: int,
    batch_size: int,
    collate_fn: Callable[..., Any] = collate,
) -> DataLoader[Any]:
    batch_bytes = batch_size * items.item_bytes
    return DataLoader(
        items,
        batch_sampler=sampler,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        **worker_options(num_workers, collate_fn, prefetch=4, batch_bytes=batch_bytes),
    )
