"""Work that is handed to worker processes item by item and comes back in order. Of the libraries it needs torch alone."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

from headstart.runtime import STOP_SIGNALS

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
        **patient(num_workers),
    )
    return iter(loader)


class _Lazily(Sampler[Any]):
    def __init__(self, items: Callable[[], Iterator[Any]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return self._items()


def patient(num_workers: int) -> dict[str, Any]:
    """What a DataLoader needs so that a signal to the whole group does not cost the batches in work: its workers leave
    signals to the parent, and end when that says so or is gone."""
    if num_workers == 0:
        return {}
    context = copy(multiprocessing.get_context())  # a copy: the original is everybody's
    context.Process = _Patient  # type: ignore[misc]
    return {"multiprocessing_context": context, "worker_init_fn": _leave_signals_to_the_parent}


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
