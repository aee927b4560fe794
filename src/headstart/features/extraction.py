"""Fill the feature bank: decode the images of missing rows and run the frozen trunk, on all processes.

On a CPU one worker process per core decodes and computes whole batches with one thread: no pixels are sent between
processes, no thread pool waits for another, and decoding cannot starve the trunk. On a GPU the workers only decode.
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
from headstart.data.samples import Sample
from headstart.data.sampling import augmentation_seeds, keys_of
from headstart.data.source import Source
from headstart.data.transforms import Preprocess, Transform, train_short_side, train_transform
from headstart.errors import InputError, Stopped
from headstart.features.bank import EVAL_TRANSFORM, Bank, BankRows, row_name
from headstart.features.coordination import Coordination
from headstart.messages import ProgressStyle
from headstart.model.forward import FrozenNetwork
from headstart.runtime.hardware import cores_per_process
from headstart.runtime.processes import from_all, on_main
from headstart.runtime.progress import ItemProgress
from headstart.runtime.signals import StopRequest
from headstart.runtime.worker_processes import in_workers

# A batch always has this many images, and the last one is filled up with black: so a feature does not depend on the
# other images of its batch. One shard is written per batch, so a killed run loses at most this many images per worker.
BATCH_CPU, BATCH_GPU = 16, 256


@dataclass(frozen=True)
class BankTransform:
    """A deterministic transform of any image. id: its name in the bank; number: 0 for the evaluation transform, k for
    the k-th augmented copy."""

    id: str
    number: int
    seed: int
    transform: Transform

    def pixels(self, sha256: str, load: Callable[[], Image.Image]) -> torch.Tensor:
        """uint8 (3, S, S), a function of the image's content and the transform alone. load: decodes the image."""
        seed = int(augmentation_seeds(keys_of([sha256]), seed=self.seed, epoch=self.number)[0])
        return self.transform.of(sha256, seed, load)


def bank_transforms(
    data: DataConfig, spec: Preprocess, *, augmented_copies: int, seed: int, cache_limit: CacheLimit = NO_CACHE
) -> list[BankTransform]:
    """The evaluation transform and those of the augmented copies; copy k is a function of (seed, k, content).

    cache_limit: of the decoded images of each of the two kinds."""
    transforms = [BankTransform(EVAL_TRANSFORM, 0, seed, spec.eval_transform(cache_limit=cache_limit))]
    if augmented_copies:
        augmented = train_transform(data, spec, cache_limit=cache_limit)
        recipe = {"min_crop_scale": data.min_crop_scale, "hflip": data.hflip, "vflip": data.vflip, "seed": seed}
        if side := train_short_side(data, spec):
            recipe["short_side"] = side
        for number in range(1, augmented_copies + 1):
            name = json.dumps(recipe | {"view": number}, sort_keys=True)  # stored banks have this key
            transforms.append(BankTransform(name, number, seed, augmented))
    return transforms


@dataclass(frozen=True, slots=True)
class Row:
    """A requested row of features: an image file of known content, and a transform. path: within the source."""

    path: str
    sha256: str
    transform: BankTransform
    source: Source

    @property
    def name(self) -> bytes:
        return row_name(self.sha256, self.transform.id)

    @property
    def location(self) -> str:
        """The path with that of the source, for messages."""
        return os.path.join(self.source.root, self.path)


def rows_of(source: Source, samples: Iterable[Sample], transforms: Sequence[BankTransform]) -> list[Row]:
    """All transforms of the first sample, then of the second, and so on."""
    return [Row(sample.path, sample.sha256, transform, source) for sample in samples for transform in transforms]


@dataclass(frozen=True)
class Extraction:
    """wanted: number of different rows that were requested; computed: of these, by all processes; seconds: of this
    process."""

    wanted: int
    computed: int
    seconds: float


def fill(
    accelerator: Accelerator,
    bank: Bank,
    rows: Sequence[Row],
    spec: Preprocess,
    trunk: Callable[[], FrozenNetwork],
    *,
    num_workers: int | None,
    stop: StopRequest,
    progress: ProgressStyle = "auto",
    what: str = "features",
) -> Extraction:
    """Compute the rows that `bank` lacks; each process computes its share and stores it batch by batch. The main
    process shows the progress, labelled `what`.

    The trunk is only built if rows are missing. All processes raise the same error: Stopped after a signal to any of
    them, with the finished batches kept; InputError if a file has changed since the scan, its features are not finite,
    or the bank is read-only."""
    started = time.perf_counter()
    first_of = {row.name: index for index, row in reversed(list(enumerate(rows)))}
    missing: list[int] = on_main(
        accelerator, lambda: sorted(index for name, index in first_of.items() if name not in bank)
    )
    if missing:
        share = [rows[index] for index in missing[accelerator.process_index :: accelerator.num_processes]]
        coordination = Coordination(accelerator, stop)
        error = None
        style: ProgressStyle = progress if accelerator.is_main_process else "silent"
        display = ItemProgress(what, len(missing), style=style)
        try:
            if share:  # there may be fewer rows than processes
                # the processes have equal shares, so this one knows how far all are
                compute = partial(_compute, share, bank, spec, trunk(), coordination, display)
                compute(num_workers=num_workers, times=accelerator.num_processes)
        except InputError as raised:
            error = str(raised)
        coordination.finish(failed=error is not None)
        for message in from_all(accelerator, error):
            if message is not None:
                raise InputError(message)
        if stop.agreed(accelerator):
            raise Stopped(
                f"stopped by {stop.signal_name or 'a signal'} while computing features; the finished ones are stored "
                f"in {bank.path} and are not computed again",
                signal_name=stop.signal_name,
            )
    # also for rows that another run stored after this process had opened the bank
    bank.refresh()
    lacking = max(from_all(accelerator, sum(name not in bank for name in first_of)))
    if lacking:
        raise InputError(
            f"{lacking} of {len(first_of)} features are not in {bank.path} although every process stored its share; "
            "all processes must see the same storage: choose it with --runtime.bank DIR"
        )
    if missing and accelerator.is_main_process:
        bank.remove_damaged()
    return Extraction(len(first_of), len(missing), time.perf_counter() - started)


def _compute(
    rows: Sequence[Row],
    bank: Bank,
    spec: Preprocess,
    trunk: FrozenNetwork,
    coordination: Coordination,
    display: ItemProgress,
    *,
    num_workers: int | None,
    times: int,
) -> None:
    """Store the features of this process's rows, or of the batches that had begun when another process ended. Raises
    InputError for an unusable image, after storing the batches before it. times: images that the display counts per
    image."""
    on_cpu = trunk.device.type == "cpu"
    size = BATCH_CPU if on_cpu else BATCH_GPU
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    if num_workers is None:
        num_workers = cores_per_process()
    num_workers = min(num_workers, len(batches)) if len(batches) > 1 else 0
    work = _Work(batches, spec, size, trunk if on_cpu else None)

    def numbers() -> Iterator[int]:
        for number in range(len(batches)):
            if coordination.ends:
                return
            yield number

    writer = bank.writer()
    error = None
    results = in_workers(work, numbers, num_workers=num_workers, result_bytes=size * 3 * spec.image_size**2)
    with display:  # the workers have started: a thread that draws would be copied into them
        for (computed, error), batch in zip(results, batches, strict=False):  # a stop leaves fewer results
            if error is not None:
                break
            features = computed if on_cpu else trunk(spec.normalize(computed.to(trunk.device))).cpu()
            values = features[: len(batch)].numpy()
            if error := _not_finite(values, batch, precision=str(trunk.dtype).removeprefix("torch.")):
                break
            writer.add([row.name for row in batch], values)
            display.advance(times * len(batch))
            coordination.after_batch()
            if coordination.failed:
                break
    writer.merge()
    if error is not None:
        raise InputError(error)


def _not_finite(features: np.ndarray, batch: Sequence[Row], *, precision: str) -> str | None:
    """The message about the first image whose features are inf or nan. features: (n, d), a row per row of the
    batch."""
    odd = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if not len(odd):
        return None
    return (
        f"{batch[int(odd[0])].location}: its features are inf or nan; use other --model.weights, or "
        f"--runtime.mixed_precision no (now {precision})"
    )


class _Work(Dataset[tuple[torch.Tensor, str | None]]):
    """Item i: batch i as uint8 pixels (size, 3, S, S), or as float32 features (size, d) if there is a trunk; and an
    error message if a file cannot be used."""

    def __init__(
        self, batches: Sequence[Sequence[Row]], spec: Preprocess, size: int, trunk: FrozenNetwork | None
    ) -> None:
        self.batches, self.spec, self.size, self.trunk = batches, spec, size, trunk
        self._last: tuple[str, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str | None]:
        side = self.spec.image_size
        pixels = torch.zeros((self.size, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        for number, row in enumerate(self.batches[index]):
            try:
                pixels[number] = row.transform.pixels(row.sha256, partial(self._decoded, row))
            except (UnreadableImage, OSError) as error:
                return pixels[:0], f"{row.location} was readable when the run began and is not now: {error}"
        return (pixels if self.trunk is None else self.trunk(self.spec.normalize(pixels))), None

    def _decoded(self, row: Row) -> Image.Image:
        """The image of a row. The last one is kept, as all transforms of an image follow each other."""
        if self._last is None or self._last[0] != row.sha256:
            data = row.source.read(row.path)
            if hashlib.sha256(data).hexdigest() != row.sha256:
                raise UnreadableImage("its content changed")
            self._last = row.sha256, row.transform.transform.decode(data)
        return self._last[1]


def features_of(bank: Bank, rows: Sequence[Row]) -> BankRows:
    """(n, d) float32, in the order of `rows`, memory-mapped. Raises KeyError for a row that is not stored."""
    return bank.rows([row.name for row in rows])
