"""What the processes of a run exchange while each computes its share of the features."""

import time

from accelerate import Accelerator

from headstart.runtime.processes import agree
from headstart.runtime.signals import StopRequest

EXCHANGE_S = 1.0  # time between two exchanges


class Coordination:
    """The processes' exchange between batches, about once a second: if one of them is stopped or fails, the others end
    without computing the rest of their shares.

    All processes take part in every exchange; one that has finished continues with them until all have."""

    def __init__(self, accelerator: Accelerator, stop: StopRequest) -> None:
        self._accelerator, self._stop = accelerator, stop
        self._exchanged_at = time.monotonic()
        self._over = False
        self.failed = False

    @property
    def ends(self) -> bool:
        """Whether no further batch may begin."""
        return self._over or self._stop.signal_name is not None

    def after_batch(self) -> None:
        if not self._over and time.monotonic() - self._exchanged_at >= EXCHANGE_S:
            self._exchange(failed=False, busy=True)

    def finish(self, *, failed: bool) -> None:
        """This process is done. Returns when all are, or as soon as one is stopped or has failed."""
        while not self._over:
            self._exchange(failed=failed, busy=False)

    def _exchange(self, *, failed: bool, busy: bool) -> None:
        stopped = self._stop.signal_name is not None
        stopped, self.failed, busy = agree(self._accelerator, stopped, failed, busy)
        self._over = stopped or self.failed or not busy
        self._exchanged_at = time.monotonic()
