"""From manifest rows to batches: datasets' imagefolder builder, the decoder, one view per image."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from headstart.data.decode import UnreadableImage, decode
from headstart.data.manifest import Sample
from headstart.data.sampling import EvalSampler, StepSampler, keys_of, view_seeds
from headstart.errors import OwnInputError
from headstart.preprocess import View

Batch = dict[str, torch.Tensor]
"""pixels: uint8 (n, 3, S, S), channels last in memory; label: int64 (n,); index: int64 (n,), the row in the split's samples."""


def load_images(root: Path, samples: Sequence[Sample], classes: Sequence[str]) -> datasets.Dataset:
    """Columns image (undecoded: {"path", "bytes"}) and label (ClassLabel), one row per sample, in their order.

    The builder gets an explicit list of files and no say in labels and splits, so that folder names, metadata
    files and depth cannot change what the scan found. It keeps paths only; its table is held in memory.
    """
    files = [os.path.abspath(root / sample.path) for sample in samples]
    with tempfile.TemporaryDirectory(prefix="headstart-") as cache, _quiet():
        builder = ImageFolder(
            cache_dir=cache,
            data_files=DataFilesDict({"images": DataFilesList(files, [])}),
            drop_labels=True,
            drop_metadata=True,
            features=datasets.Features({"image": datasets.Image(decode=False)}),
        )
        builder.download_and_prepare()
        rows = builder.as_dataset(split="images", in_memory=True)
    assert [row["path"] for row in rows["image"]] == files, "the builder changed the order of the files"
    codes = {name: code for code, name in enumerate(classes)}
    return rows.add_column(
        "label",
        [codes[sample.label] for sample in samples],
        feature=datasets.ClassLabel(names=list(classes)),
    )


class Views(Dataset[dict[str, Any]]):
    """Item (index, epoch) -> the sample's view in that epoch (or, of balanced classes, when it was drawn so often before). Raises OwnInputError if the file became unreadable."""

    def __init__(self, rows: datasets.Dataset, samples: Sequence[Sample], view: View, *, seed: int) -> None:
        self.rows = rows
        self.contents = [sample.sha256 for sample in samples]
        self.keys = keys_of([sample.id for sample in samples])
        self.view = view
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, epoch = item
        row = self.rows[index]
        seed = int(view_seeds(self.keys[index : index + 1], seed=self.seed, epoch=epoch)[0])
        pixels = self.view.of(self.contents[index], seed, lambda: _load(row["image"]["path"]))
        return {"pixels": pixels, "label": row["label"], "index": index}


def _load(path: str) -> Image.Image:
    try:
        return decode(Path(path).read_bytes())
    except (UnreadableImage, OSError) as error:
        raise OwnInputError(f"{path} was readable when the run began and is not now: {error}") from None


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    return {
        "pixels": torch.stack([item["pixels"].permute(1, 2, 0) for item in items]).permute(0, 3, 1, 2),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }


def train_loader(
    rows: datasets.Dataset,
    samples: Sequence[Sample],
    view: View,
    *,
    batch_size: int,
    accumulation: int,
    num_steps: int,
    start_step: int,
    seed: int,
    num_workers: int,
    labels: np.ndarray | None = None,
) -> DataLoader[Any]:
    """All batches of the run in one pass, so that workers start once and read ahead during validation.

    labels: (n,) int, the class of each sample if the classes are to be balanced."""
    views = Views(rows, samples, view, seed=seed)
    sampler = StepSampler(
        views.keys,
        batch_size=batch_size,
        num_steps=num_steps,
        seed=seed,
        start_step=start_step,
        accumulation=accumulation,
        labels=labels,
    )
    return _loader(views, sampler, num_workers=num_workers)


def eval_loader(
    rows: datasets.Dataset, samples: Sequence[Sample], view: View, *, batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Every row once, in order."""
    views = Views(rows, samples, view, seed=0)
    return _loader(views, EvalSampler(len(rows), batch_size=batch_size), num_workers=num_workers)


def _loader(views: Views, sampler: StepSampler | EvalSampler, *, num_workers: int) -> DataLoader[Any]:
    return DataLoader(
        views,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
    )


class _quiet:
    """datasets' progress bars off for a while; ours are on stage."""

    def __enter__(self) -> None:
        self._were_on = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        if self._were_on:
            datasets.enable_progress_bars()
