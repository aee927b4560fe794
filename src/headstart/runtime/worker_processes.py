"""DataLoader workers that survive signals to the process group. torch is the only library that this file needs."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from headstart.runtime.hardware import bounded_workers, free_shared_memory, local_processes
from headstart.runtime.signals import STOP_SIGNALS

_T = TypeVar("_T")

MIN_SHARED_BYTES = 2**30  # tensors use /dev/shm only if at least this much is free; Docker's default is 64 MB in total


def in_workers(
    work: "Dataset[_T]", items: Callable[[], Iterator[Any]], *, num_workers: int, result_bytes: int
) -> Iterator[_T]:
    """Yield work[item] for each item, in order, computed in `num_workers` processes of one thread each (0: in this
    process). Items are drawn a few ahead. Those that were drawn are finished also after a signal to the process group.

    result_bytes: approximate size of the tensors of one result."""
    batch_bytes = result_bytes * local_processes()
    loader: DataLoader[Any] = DataLoader(
        work,
        sampler=items(),
        batch_size=None,
        **worker_options(num_workers, _identity, prefetch=2, batch_bytes=batch_bytes),
    )
    return iter(loader)


def worker_options(
    num_workers: int, collate: Callable[[Any], Any], *, prefetch: int, batch_bytes: int, shared: int | None = None
) -> dict[str, Any]:
    """DataLoader options whose workers ignore stop signals and end with the parent process, so a signal to the process
    group loses no batch.

    num_workers: at most `bounded_workers` of them are started. prefetch: batches that each worker prepares ahead.
    batch_bytes: approximate size of a batch. shared: bytes of free shared memory; None reads it from the system.
    Tensors are sent through a pipe unless shared memory is plentiful, because torch waits forever for a batch that does
    not fit."""
    num_workers = bounded_workers(num_workers)
    if num_workers == 0:
        return {"num_workers": 0, "collate_fn": collate}
    context = copy(multiprocessing.get_context())  # the original is shared with all other code
    context.Process = _WorkerProcess  # type: ignore[misc]
    shared = free_shared_memory() if shared is None else shared
    needed = num_workers * (prefetch + 1) * batch_bytes
    return {
        "num_workers": num_workers,
        "collate_fn": collate if shared >= max(MIN_SHARED_BYTES, 2 * needed) else partial(_collate_by_value, collate),
        "prefetch_factor": prefetch,
        "multiprocessing_context": context,
        "worker_init_fn": _ignore_stop_signals,
    }


def _collate_by_value(collate: Callable[[Any], Any], items: Any) -> Any:
    return _by_value(collate(items))


def _by_value(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return _TensorByValue(batch)
    if isinstance(batch, dict):
        return {name: _by_value(value) for name, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_by_value(value) for value in batch)
    return batch


class _TensorByValue:
    """Pickled as an array, where a tensor would be pickled as the name of a shared memory block. Unpickled as a tensor
    in the same memory format."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        tensor = self.tensor
        channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return _tensor_of, ((tensor.permute(0, 2, 3, 1) if channels_last else tensor).numpy(), channels_last)


def _tensor_of(array: np.ndarray, channels_last: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor


class _WorkerProcess(multiprocessing.get_context().Process):  # type: ignore[misc]
    """Starts with the stop signals blocked, because torch's own handlers, which end a worker, are active until its
    worker_init_fn runs."""

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
        self.kill()  # torch calls this for the remaining workers after an error, and they ignore SIGTERM


def _ignore_stop_signals(worker: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@atexit.register
def _kill_workers() -> None:
    """Kill the remaining workers at exit: multiprocessing would send SIGTERM, which they ignore, and wait for them."""
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as lost
    for worker in workers:
        worker.kill()


def _identity(item: Any) -> Any:
    return item
