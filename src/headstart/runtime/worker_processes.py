"""Work that is handed to worker processes item by item and comes back in order. Of the libraries it needs torch alone."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from headstart.runtime.hardware import free_shared_memory, local_processes
from headstart.runtime.signals import STOP_SIGNALS

_T = TypeVar("_T")

LEAST_SHARED = 2**30  # bytes free in /dev/shm above which it is used; Docker's default is 64 MB in all


def in_workers(
    work: "Dataset[_T]", items: Callable[[], Iterator[Any]], *, num_workers: int, result_bytes: int
) -> Iterator[_T]:
    """work[item] for each item, in order, in so many processes of one thread (0: in this one). Items are drawn as they are needed, a few
    ahead; when they end, those that were begun are still finished, also after a signal to the whole group.

    result_bytes: of the tensors of a result, about."""
    loader: DataLoader[Any] = DataLoader(
        work,
        sampler=_Lazily(items),
        batch_size=None,
        **worker_options(num_workers, _as_it_is, prefetch=2, batch_bytes=result_bytes * local_processes()),
    )
    return iter(loader)


class _Lazily(Sampler[Any]):
    def __init__(self, items: Callable[[], Iterator[Any]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return self._items()


def worker_options(
    num_workers: int, collate: Callable[[Any], Any], *, prefetch: int, batch_bytes: int, shared: int | None = None
) -> dict[str, Any]:
    """Options of a DataLoader whose workers leave signals to the parent, and end when that says so or is gone: a signal to the whole
    group does not cost the batches in work.

    prefetch: batches that each worker prepares ahead; batch_bytes: of a batch, about; shared: bytes of shared memory that are free, None to
    look. Tensors travel through shared memory only where there is room to spare: torch waits for ever for a batch that does not fit."""
    if num_workers == 0:
        return {"num_workers": 0, "collate_fn": collate}
    context = copy(multiprocessing.get_context())  # a copy: the original is everybody's
    context.Process = _Patient  # type: ignore[misc]
    shared = free_shared_memory() if shared is None else shared
    needed = num_workers * (prefetch + 1) * batch_bytes
    if shared < max(LEAST_SHARED, 2 * needed):
        collate = _Piped(collate)
    return {
        "num_workers": num_workers,
        "collate_fn": collate,
        "prefetch_factor": prefetch,
        "multiprocessing_context": context,
        "worker_init_fn": _leave_signals_to_the_parent,
    }


class _Piped:
    """A collate function whose tensors travel to the parent through a pipe, by value."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, items: Any) -> Any:
        return _by_value(self._collate(items))


def _by_value(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return _Value(batch)
    if isinstance(batch, dict):
        return {name: _by_value(value) for name, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_by_value(value) for value in batch)
    return batch


class _Value:
    """Pickled as bytes, where a tensor would be pickled as the name of a piece of shared memory; unpickled as the tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        tensor = self.tensor
        channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return _tensor_of, ((tensor.permute(0, 2, 3, 1) if channels_last else tensor).numpy(), channels_last)


def _tensor_of(array: np.ndarray, channels_last: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor


class _Patient(multiprocessing.get_context().Process):  # type: ignore[misc]
    """Starts with the signals held back: torch's own handlers, which end a worker, are set before its worker_init_fn runs."""

    def start(self) -> None:
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            super().start()
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        self.kill()  # torch asks this of workers that are left after an error, and they ignore SIGTERM


def _leave_signals_to_the_parent(worker: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@atexit.register
def _end_workers() -> None:
    """Those that are left when the interpreter ends: multiprocessing would send a SIGTERM, which they ignore, and wait."""
    left = [worker for worker in multiprocessing.active_children() if worker.daemon]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call them lost
    for worker in left:
        worker.kill()


def _as_it_is(item: Any) -> Any:
    return item
