"""Signals that ask a run to stop."""

import os
import platform
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from headstart.runtime.processes import agree

if TYPE_CHECKING:  # imported where it is used: a model is loaded and asked without it
    from accelerate import Accelerator


def end_with_launcher() -> None:
    """Ask the system for SIGTERM when torchrun's agent dies: it starts processes in sessions of their own, so that a killed
    agent would leave them training. Linux only."""
    if "TORCHELASTIC_RUN_ID" in os.environ and platform.system() == "Linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


STOP_SIGNALS: list[int] = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]
"""Windows has no SIGHUP and no SIGUSR1."""
SAME_REQUEST_S = 1.0


class StopRequest:
    """Remembers that SIGTERM, SIGINT, SIGHUP (a closed terminal) or SIGUSR1 asked the run to end; a second signal ends it at once.

    Signals within SAME_REQUEST_S are one request: a launcher passes on what its processes got, too. A closed terminal sends several
    SIGHUPs, so these are never a second request, and where they are ignored (nohup) they stay ignored."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # signals reach no other thread
            for number in STOP_SIGNALS:
                if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name, before = signal.Signals(number).name, self.signal_name
        if before is not None and (name == "SIGHUP" or time.monotonic() - self._since < SAME_REQUEST_S):
            return
        if before not in (None, "SIGHUP"):
            os._exit(143)
        self.signal_name, self._since = name, time.monotonic()

    def agreed(self, accelerator: "Accelerator") -> bool:
        """Whether any process was asked to stop; the same answer everywhere."""
        return agree(accelerator, self.signal_name is not None)[0]
