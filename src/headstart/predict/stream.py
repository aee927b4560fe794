"""Any number of images through a model, in order, a few batches in memory at a time.

On a CPU each worker process decodes and computes whole batches with one thread, one worker per core. On a GPU the
workers only decode. features/extraction.py explains why."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import Dataset

from headstart.data.transforms import Preprocess
from headstart.predict.image_paths import Listed
from headstart.predict.predictor import Outputs, Predictor, decode_batch
from headstart.runtime.hardware import cores_per_process
from headstart.runtime.worker_processes import in_workers

BATCH_CPU, BATCH_GPU = 16, 256


@dataclass(frozen=True)
class Computed:
    """A batch. reasons: why an image could not be read, else None; outputs: of the readable images, in order."""

    images: Sequence[Listed]
    reasons: Sequence[str | None]
    outputs: Outputs


def stream(
    predictor: Predictor,
    images: Iterable[Listed],
    *,
    batch_size: int | None = None,
    num_workers: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Computed]:
    """The batches of `images`, in order. Once `stopped()` is true no batch is started; those in work are finished.

    Every batch has the same shape, padded with black, unless a single batch holds all images: that one is computed
    as it is, with all threads."""
    size = _batch_size(predictor, batch_size)
    batches = _batches(images, size)
    first = list(islice(batches, 2))
    if len(first) > 1:
        yield from _computed(predictor, chain(first, batches), size, num_workers, stopped)
    else:
        yield from _computed(predictor, first, 0, 0, stopped)


def stream_repeatably(
    predictor: Predictor,
    groups: Iterable[Iterable[Listed]],
    *,
    batch_size: int | None = None,
    num_workers: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Computed]:
    """As `stream`, for groups of images any of which may be computed again, to the same bits on the same machine.

    No batch spans two groups. On a CPU the last bit of a result depends on the shape of the batch, on the place in
    it and on the number of threads, so every batch has the same shape and is computed with one thread."""
    size = _batch_size(predictor, batch_size)
    batches = chain.from_iterable(_batches(group, size) for group in groups)
    if num_workers == 0 and predictor.device.type == "cpu":
        torch.set_num_threads(1)
    yield from _computed(predictor, batches, size, num_workers, stopped)


def _batches(images: Iterable[Listed], size: int) -> Iterator[list[Listed]]:
    waiting = iter(images)
    while batch := list(islice(waiting, size)):
        yield batch


def _batch_size(predictor: Predictor, requested: int | None) -> int:
    return requested or (BATCH_CPU if predictor.device.type == "cpu" else BATCH_GPU)


def _computed(
    predictor: Predictor,
    waiting: Iterable[list[Listed]],
    padded_to: int,
    num_workers: int | None,
    stopped: Callable[[], bool],
) -> Iterator[Computed]:
    """padded_to: images of every batch that the network computes; 0: as many as there are."""
    on_cpu = predictor.device.type == "cpu"

    def batches() -> Iterator[list[Listed]]:
        for batch in waiting:
            if stopped():
                return
            yield batch

    network = partial(_compute, predictor, padded_to)
    work = _Work(predictor.info.preprocess, network if on_cpu else None)
    workers = cores_per_process() if num_workers is None else num_workers
    result_bytes = max(padded_to, 1) * 3 * predictor.info.preprocess.image_size**2
    for batch, reasons, done in in_workers(work, batches, num_workers=workers, result_bytes=result_bytes):
        yield Computed(batch, reasons, done if on_cpu else network(done))


def _compute(predictor: Predictor, padded_to: int, pixels: torch.Tensor) -> Outputs:
    """uint8 (m, 3, S, S) -> outputs of m images."""
    count = len(pixels)
    if 0 < count < padded_to:
        black = torch.zeros((padded_to - count, *pixels.shape[1:]), dtype=torch.uint8)
        pixels = torch.cat([pixels, black]).contiguous(memory_format=torch.channels_last)
    outputs = predictor.compute(pixels)
    return Outputs(outputs.features[:count], outputs.logits[:count])


class _Work(Dataset[tuple[list[Listed], list[str | None], Any]]):
    """Item: a batch of names -> the same, reasons, and Outputs or, without a network, uint8 pixels (m, 3, S, S)."""

    def __init__(self, spec: Preprocess, network: Callable[[torch.Tensor], Outputs] | None) -> None:
        self.spec, self.network = spec, network

    def __getitem__(self, batch: list[Listed]) -> tuple[list[Listed], list[str | None], Any]:
        pixels, decoded = decode_batch([one.file or one.path for one in batch if one.error is None], self.spec)
        found = iter(decoded)
        reasons = [one.error if one.error is not None else next(found) for one in batch]
        return batch, reasons, pixels if self.network is None else self.network(pixels)
