"""Workers of one item at a time: the effect of a signal to the process group."""

import multiprocessing
import os
import signal

import pytest
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from headstart.runtime.worker_processes import in_workers


class Doubled(Dataset[int]):
    def __getitem__(self, item: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 2 * item


@pytest.mark.skipif(multiprocessing.get_all_start_methods()[0] != "fork", reason="patches what a forked worker runs")
def test_a_signal_to_the_group_ends_no_worker_whenever_it_comes(monkeypatch):
    """torch sets its own handlers first in a worker; a signal between them and ours ended it once in 100 runs."""
    original = signal_handling._set_worker_signal_handlers

    def then_a_signal() -> None:
        original()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", then_a_signal)
    assert list(in_workers(Doubled(), lambda: iter(range(5)), num_workers=2, result_bytes=8)) == [0, 2, 4, 6, 8]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()  # this process receives them as before
