"""Work that is handed to worker processes item by item and comes back in order. Needs torch alone."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

_T = TypeVar("_T")


def in_workers(work: "Dataset[_T]", items: Callable[[], Iterator[Any]], *, num_workers: int) -> Iterator[_T]:
    """work[item] for each item, in order, in so many processes of one thread (0: in this one). Items are drawn as they are needed, a few
    ahead; when they end, those that were begun are still finished, also after a signal to the whole group."""
    loader: DataLoader[Any] = DataLoader(
        work,
        sampler=_Lazily(items),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        prefetch_factor=2 if num_workers else None,
        worker_init_fn=leave_signals_to_the_parent if num_workers else None,
    )
    return iter(loader)


class _Lazily(Sampler[Any]):
    def __init__(self, items: Callable[[], Iterator[Any]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return self._items()


def leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the whole group must not cost the batches in work; a worker ends when its parent says so or is gone."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if number := getattr(signal, name, None):  # Windows has no SIGUSR1
            signal.signal(number, signal.SIG_IGN)


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
