"""Fill the feature bank: decode and run the frozen trunk for the rows that are missing, on all processes.

On a CPU a batch is decoded and computed in one worker process with one thread, one worker per core: no pixels travel,
no thread pool waits for another, and decoding cannot starve the trunk. On a GPU the workers decode only.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import Dataset

from headstart.config import DataConfig
from headstart.data.decode import UnreadableImage
from headstart.data.pixel_cache import NO_CACHE, CacheLimit
from headstart.data.samples import Sample, Source
from headstart.data.sampling import augmentation_seeds, keys_of
from headstart.data.transforms import Preprocess, Transform, train_transform
from headstart.errors import InputError, Stopped
from headstart.features.bank import EVAL_TRANSFORM, Bank, BankRows, row_name
from headstart.model.frozen_trunk import FrozenTrunk
from headstart.runtime.hardware import cores_per_process
from headstart.runtime.processes import agree, from_all, on_main
from headstart.runtime.signals import StopRequest
from headstart.runtime.worker_processes import in_workers

# A batch always has this many images, the last one filled up with black: what a feature is does not depend on which
# other images are computed with it. One shard is written per batch, so this is also what a kill can cost.
BATCH_CPU, BATCH_GPU = 16, 256

EXCHANGE_S = 1.0  # so often the processes tell each other whether one must stop or failed, between two batches


@dataclass(frozen=True)
class BankTransform:
    """One deterministic view of any image: `id` names it in the bank, number 0 is the evaluation view."""

    id: str
    number: int
    seed: int
    transform: Transform

    def pixels(self, sha256: str, load: Callable[[], Image.Image]) -> torch.Tensor:
        """uint8 (3, S, S), a function of the content and the view alone."""
        return self.transform.of(
            sha256, int(augmentation_seeds(keys_of([sha256]), seed=self.seed, epoch=self.number)[0]), load
        )


def bank_transforms(
    data: DataConfig, spec: Preprocess, *, augmented_copies: int, seed: int, cache_limit: CacheLimit = NO_CACHE
) -> list[BankTransform]:
    """The evaluation transform and `augmented_copies` random ones; the k-th is a function of (seed, k, content).

    cache_limit: how much may be kept of each of the two kinds."""
    transforms = [BankTransform(EVAL_TRANSFORM, 0, seed, spec.eval_transform(cache_limit=cache_limit))]
    if augmented_copies:
        augmented = train_transform(data, spec, cache_limit=cache_limit)
        recipe = {"min_crop_scale": data.min_crop_scale, "hflip": data.hflip, "vflip": data.vflip, "seed": seed}
        for number in range(1, augmented_copies + 1):
            transforms.append(
                BankTransform(json.dumps(recipe | {"view": number}, sort_keys=True), number, seed, augmented)
            )
    return transforms


@dataclass(frozen=True, slots=True)
class Row:
    """One row of features that is wanted: an image file of known content, in one view."""

    path: str  # in the source
    sha256: str
    transform: BankTransform
    source: Source

    @property
    def name(self) -> bytes:
        return row_name(self.sha256, self.transform.id)


def rows_of(source: Source, samples: Iterable[Sample], transforms: Sequence[BankTransform]) -> list[Row]:
    """All views of the first sample, then of the second, ..."""
    return [Row(sample.path, sample.sha256, transform, source) for sample in samples for transform in transforms]


@dataclass(frozen=True)
class Extraction:
    """What filling the bank took. computed: rows over all processes; seconds: of this process."""

    wanted: int
    computed: int
    seconds: float


def fill(
    accelerator: Accelerator,
    bank: Bank,
    rows: Sequence[Row],
    spec: Preprocess,
    trunk: Callable[[], FrozenTrunk],
    *,
    num_workers: int | None,
    stop: StopRequest,
) -> Extraction:
    """Compute what `bank` lacks of `rows`; each process takes its share and stores it batch by batch.

    The trunk is not even built if nothing is missing. All processes raise the same: Stopped after a signal to any of them,
    with the finished batches kept, and InputError if a file changed since it was scanned, its features are not finite, or
    the bank cannot be written.
    """
    started = time.perf_counter()
    first_of = {row.name: index for index, row in reversed(list(enumerate(rows)))}
    missing: list[int] = on_main(
        accelerator, lambda: sorted(index for name, index in first_of.items() if name not in bank)
    )
    if missing:
        share = [rows[index] for index in missing[accelerator.process_index :: accelerator.num_processes]]
        pact = _Pact(accelerator, stop)
        reason = _compute(share, bank, spec, trunk, pact, num_workers=num_workers)
        for told in from_all(accelerator, reason):
            if told is not None:
                raise InputError(told)
        if stop.agreed(accelerator):
            raise Stopped(
                f"stopped by {stop.signal_name or 'a signal'} while computing features; those that are finished are kept in "
                f"{bank.path}, and the same command continues"
            )
    # whatever the main process lacked: another run may have stored rows after this process opened the bank
    bank.refresh()
    lacking = max(from_all(accelerator, sum(name not in bank for name in first_of)))
    if lacking:
        raise InputError(
            f"{lacking} of {len(first_of)} features are not in {bank.path} although every process stored its share; "
            "all processes must see the same storage there: name it with --runtime.bank DIR"
        )
    if missing and accelerator.is_main_process:
        bank.remove_damaged()
    return Extraction(len(first_of), len(missing), time.perf_counter() - started)


class _Pact:
    """What the processes tell each other between batches, about once a second, so that one that must stop or failed does not
    wait for shares that are computed in vain, and none waits for long.

    All take part in every exchange: who has nothing left to do goes on with them until nobody has."""

    def __init__(self, accelerator: Accelerator, stop: StopRequest) -> None:
        self._accelerator, self._stop = accelerator, stop
        self._told_at = time.monotonic()
        self._over = False
        self.failed = False

    @property
    def ends(self) -> bool:
        """No batch is to be begun any more."""
        return self._over or self._stop.signal_name is not None

    def after_batch(self) -> None:
        if not self._over and time.monotonic() - self._told_at >= EXCHANGE_S:
            self._exchange(failed=False, busy=True)

    def finish(self, *, failed: bool) -> None:
        """This process is done; returns when all are, or as soon as one must stop or failed."""
        while not self._over:
            self._exchange(failed=failed, busy=False)

    def _exchange(self, *, failed: bool, busy: bool) -> None:
        stopped = self._stop.signal_name is not None
        stopped, self.failed, busy = agree(self._accelerator, stopped, failed, busy)
        self._over = stopped or self.failed or not busy
        self._told_at = time.monotonic()


def _compute(
    rows: Sequence[Row],
    bank: Bank,
    spec: Preprocess,
    build_trunk: Callable[[], FrozenTrunk],
    pact: _Pact,
    *,
    num_workers: int | None,
) -> str | None:
    """Store the features of all rows, or of those that were begun when the pact ends; returns what is wrong with the input,
    if anything is."""
    reason = None
    if rows:  # there may be fewer than processes
        try:
            reason = _store(rows, bank, spec, build_trunk(), pact, num_workers=num_workers)
        except InputError as error:
            reason = str(error)
    pact.finish(failed=reason is not None)
    return reason


def _store(
    rows: Sequence[Row], bank: Bank, spec: Preprocess, trunk: FrozenTrunk, pact: _Pact, *, num_workers: int | None
) -> str | None:
    """The part of `_compute` that this process can do alone, but for the pact between batches."""
    on_cpu = trunk.device.type == "cpu"
    size = BATCH_CPU if on_cpu else BATCH_GPU
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    if num_workers is None:
        num_workers = cores_per_process()
    num_workers = min(num_workers, len(batches)) if len(batches) > 1 else 0
    work = _Work(batches, spec, size, trunk if on_cpu else None)

    def numbers() -> Iterator[int]:
        for number in range(len(work)):
            if pact.ends:
                return
            yield number

    writer = bank.writer()
    reason = None
    for number, (pixels, reason) in enumerate(
        in_workers(work, numbers, num_workers=num_workers, result_bytes=size * 3 * spec.image_size**2)
    ):
        if reason is not None:
            break
        batch = batches[number]
        features = (pixels if on_cpu else trunk(spec.normalize(pixels.to(trunk.device))).cpu())[: len(batch)].numpy()
        odd = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(odd):
            row = batch[int(odd[0])]
            reason = (
                f"{os.path.join(row.source.root, row.path)}: its features are inf or nan; use other --model.weights, or "
                f"--runtime.mixed_precision no (now {str(trunk.dtype).removeprefix('torch.')})"
            )
            break
        writer.add([row.name for row in batch], features)
        pact.after_batch()
        if pact.failed:
            break
    writer.merge()
    return reason


class _Work(Dataset[tuple[torch.Tensor, str | None]]):
    """Item i: batch i as uint8 pixels (size, 3, S, S), or as float32 features (size, 512) if there is a trunk;
    and the reason if a file cannot be used."""

    def __init__(
        self, batches: Sequence[Sequence[Row]], spec: Preprocess, size: int, trunk: FrozenTrunk | None
    ) -> None:
        self.batches, self.spec, self.size, self.trunk = batches, spec, size, trunk
        self._last: tuple[str, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str | None]:
        side = self.spec.image_size
        pixels = torch.zeros((self.size, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        for position, row in enumerate(self.batches[index]):
            try:
                pixels[position] = row.transform.pixels(row.sha256, partial(self._decoded, row))
            except (UnreadableImage, OSError) as error:
                return pixels[
                    :0
                ], f"{os.path.join(row.source.root, row.path)} was readable when the run began and is not now: {error}"
        return (pixels if self.trunk is None else self.trunk(self.spec.normalize(pixels))), None

    def _decoded(self, row: Row) -> Image.Image:
        """The image of a row; the views of one image follow each other, so the last one is kept."""
        if self._last is None or self._last[0] != row.sha256:
            data = row.source.read(row.path)
            if hashlib.sha256(data).hexdigest() != row.sha256:
                raise UnreadableImage("its content changed")
            self._last = row.sha256, row.transform.transform.decode(data)
        return self._last[1]


def features_of(bank: Bank, rows: Sequence[Row]) -> BankRows:
    """(n, 512), in the order of `rows`. Raises KeyError for a row that `fill` was not asked for."""
    return bank.rows([row.name for row in rows])
