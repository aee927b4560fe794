"""The images of a run: scanned, split, and in batches for training and validation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.data.device_transforms import DecodedImages, DeviceTransform, collate_decoded
from headstart.data.loaders import TransformedImages, as_dataset, collate, eval_loader, train_loader
from headstart.data.manifest import build_manifest
from headstart.data.pixel_cache import cache_limit_for
from headstart.data.samples import Manifest
from headstart.data.sampling import Blocks, epoch_draws, epoch_ends
from headstart.data.sources.open import open_source
from headstart.data.transforms import PixelCache, Transform, train_transform
from headstart.data_doctor.quick_check import describe_data, warn_of_mirrored_classes
from headstart.evaluation.predictions import round_up
from headstart.messages import info
from headstart.model.network import Network
from headstart.report.image_grid import image_grid
from headstart.runtime.processes import on_main
from headstart.training.loop import Batch
from headstart.training.num_workers import measure_num_workers
from headstart.training.session import Session
from headstart.wording import plural


@dataclass(frozen=True)
class Images:
    """The images of a run. transform: of training images; val_transform: of evaluation; labels: (n,) int64, classes of
    the training images; epoch_ends: optimizer steps done when each epoch ends; blocks: samples shuffled together."""

    manifest: Manifest
    transform: Transform
    val_transform: Transform
    labels: np.ndarray
    epoch_ends: list[int]
    blocks: Blocks | None


def load_data(session: Session) -> Images:
    """Scan the images, each decoded once by the main process; the decoded pixels are kept for training. The batch size
    of `session.config` is reduced if there are fewer images."""
    config = session.config
    limit = cache_limit_for(config.data)
    transform = train_transform(config.data, session.spec, cache_limit=limit)
    val_transform = session.spec.eval_transform(cache_limit=limit)
    manifest = on_main(
        session.accelerator,
        lambda: build_manifest(
            open_source(config.data),
            config.data,
            seed=config.seed,
            decoder=session.spec.decode,
            cache=PixelCache(train=[transform], val=[val_transform]),
        ),
    )
    samples = manifest.of("train")
    info(session.accelerator, describe_data(manifest))
    if session.resume_from is None:
        warn_of_mirrored_classes(session.accelerator, manifest, config.data)
    config = session.fit_batch_size(len(samples))
    blocks = None
    if config.data.sampling != "balanced":
        blocks = Blocks.of(samples.column("block"), samples.column("size"), size=config.data.shuffle_images)
    return Images(
        manifest,
        transform,
        val_transform,
        samples.codes(manifest.classes),
        epoch_ends(num_samples=len(samples), batch_size=config.train.batch_size, epochs=config.train.epochs),
        blocks,
    )


def load_batches(session: Session, images: Images, model: Network, *, start_step: int) -> tuple[Any, Any]:
    """The data loaders of training, from `start_step` to the end of the run, and of validation."""
    config, accelerator, manifest = session.config, session.accelerator, images.manifest
    rows, on_device = as_dataset(manifest.of("train"), manifest.classes), config.data.augment_on == "device"
    num_workers = config.data.num_workers
    if num_workers is None:
        share = config.train.batch_size // accelerator.num_processes // config.train.accumulation
        sources = TransformedImages(rows, manifest.source, images.transform, seed=config.seed)
        num_workers, why = measure_num_workers(accelerator, model, sources, session.spec, share=share)
        if why:
            info(accelerator, f"{plural(num_workers, 'decoding worker')} per process: {why}")
    batches = train_loader(
        rows,
        manifest.source,
        images.transform,
        batch_size=config.train.batch_size,
        accumulation=config.train.accumulation,
        num_steps=images.epoch_ends[-1],
        start_step=start_step,
        seed=config.seed,
        num_workers=num_workers,
        labels=images.labels if config.data.sampling == "balanced" else None,
        blocks=images.blocks,
        images=DecodedImages if on_device else TransformedImages,
        collate_fn=collate_decoded if on_device else collate,
    )
    val_batches = eval_loader(
        as_dataset(manifest.of("val"), manifest.classes),
        manifest.source,
        images.val_transform,
        batch_size=round_up(config.train.eval_batch_size, accelerator.num_processes),
        num_workers=num_workers,
    )
    return batches, val_batches


class Inputs:
    """From a batch of images to the normalized pixels of a training step."""

    def __init__(self, session: Session, images: Images) -> None:
        self._spec = session.spec
        self._layout = torch.channels_last if session.config.runtime.channels_last else torch.contiguous_format
        on_device = session.config.data.augment_on == "device"
        self._augment = DeviceTransform(images.transform, session.accelerator.device) if on_device else None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """float32 (n, 3, S, S)."""
        pixels = batch["pixels"] if self._augment is None else self._augment(batch)
        return self._spec.normalize(pixels.contiguous(memory_format=self._layout))


def draw_train_batch(images: TransformedImages, labels: np.ndarray | None, path: Path) -> None:
    """The first training images of the first epoch, as the network sees them. labels: classes if they are balanced."""
    order, drawn = epoch_draws(images.keys, seed=images.seed, epoch=0, labels=labels)
    image_grid(
        path,
        [images.pixels(int(index), int(before)) for index, before in zip(order[:12], drawn[:12], strict=True)],
        [images.label(int(index)) for index in order[:12]],
    )
