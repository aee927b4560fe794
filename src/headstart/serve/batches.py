"""A thread that computes in batches: what is submitted during one batch forms the next. Needs no torch."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batches(Generic[T, R]):
    """Computes at most `largest` items at once; the first of a batch waits up to `wait_s` for others."""

    def __init__(
        self, compute: Callable[[Sequence[T]], Sequence[R]], *, largest: int, wait_s: float, start: Callable[[], None]
    ) -> None:
        """compute: one result per item, in order. start: called once in the thread, before anything else."""
        self._compute, self._largest, self._wait_s, self._start = compute, largest, wait_s, start
        self._waiting: queue.SimpleQueue[tuple[T, Future[R]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, item: T) -> "Future[R]":
        """The item's result. An item that is cancelled in time is not computed; an exception of `compute` goes to the
        whole batch."""
        future: Future[R] = Future()
        self._waiting.put((item, future))
        return future

    def close(self) -> None:
        """Compute what has been submitted, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._start()
        more = True
        while more:
            batch, more = self._next()
            batch = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                results = self._compute([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _next(self) -> tuple[list[tuple[T, "Future[R]"]], bool]:
        """The next batch, and whether more may follow."""
        batch: list[tuple[T, Future[R]]] = []
        until = None
        while len(batch) < self._largest:
            try:
                entry = self._waiting.get(timeout=until and max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                return batch, False
            batch.append(entry)
            until = until or time.monotonic() + self._wait_s
        return batch, True
