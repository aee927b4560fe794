"""Signals that request the end of a run."""

import contextlib
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from headstart.errors import Stopped
from headstart.launcher import is_first_process

if TYPE_CHECKING:  # prediction does not need accelerate, so it is imported only in functions
    from accelerate import Accelerator

STOP_SIGNALS: list[int] = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]
"""Windows has neither SIGHUP nor SIGUSR1."""
SAME_REQUEST_S = 1.0


def end_with_launcher() -> None:
    """Request SIGTERM from the kernel when the torchrun agent dies, which otherwise would leave its processes running:
    each is in a session of its own. Linux only."""
    if "TORCHELASTIC_RUN_ID" in os.environ and platform.system() == "Linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def answer(line: str) -> None:
    """Write a line to the terminal, in the first process of several; nothing if standard error is not a terminal. For
    signal handlers: a handler may interrupt a print, and a second one would fail then. A bar in the last line is
    overwritten."""
    if is_first_process():
        with contextlib.suppress(OSError):  # a terminal that was closed
            if os.isatty(2):
                os.write(2, f"\r\x1b[2K{line}\n".encode())


@contextlib.contextmanager
def answered_ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt as usual, after an answer: what cleans up may take seconds."""

    def handle(number: int, frame: FrameType | None) -> None:
        answer("stopping...")
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # only the main thread can set handlers; a background job of a shell ignores the signal
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def ended_at_once(then: str) -> Iterator[None]:
    """For work that cannot be resumed: SIGINT and SIGTERM end it, after what is half-written has been removed. Raises
    Stopped. then: what remains, as a clause. A second signal ends the process."""
    received: list[str] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(143)
        received.append(signal.Signals(number).name)
        answer("stopping...")
        raise KeyboardInterrupt  # libraries pass it on, while they may handle an Exception

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
        raise Stopped(f"stopped by {received[0]}; {then}", signal_name=received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Context manager that stores the first of STOP_SIGNALS instead of acting on it. What is saved after it is the
    business of its user. A second signal acts at once: Ctrl-C raises KeyboardInterrupt, other signals do what they did
    before; on the command line both end the process with exit code 143.

    Signals within SAME_REQUEST_S count as one request, because a launcher forwards signals that its processes also
    receive. SIGHUP (a closed terminal) often arrives several times, so it is never a second request, and the signal
    after it is the first one. If SIGHUP is ignored (nohup), it stays ignored.

    On the command line, where second_signal_ends_process is set, the first signal is answered at once in the
    terminal."""

    second_signal_ends_process = False

    def __init__(self, then: str = "the work in progress is finished and stored") -> None:
        """then: what happens after a signal, as a clause of the answer."""
        self._then = then
        self.signal_name: str | None = None
        self._received_at = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # only the main thread can set handlers
            for number in STOP_SIGNALS:
                if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name, first = signal.Signals(number).name, self.signal_name
        if first is not None and (name == "SIGHUP" or time.monotonic() - self._received_at < SAME_REQUEST_S):
            return
        if first not in (None, "SIGHUP"):
            if self.second_signal_ends_process:
                os._exit(143)
            else:
                self.__exit__()
                signal.raise_signal(number)
                return
        self.signal_name, self._received_at = name, time.monotonic()
        if self.second_signal_ends_process:
            answer(f"stopping... ({self._then}; a second Ctrl-C ends at once)")

    def agreed(self, accelerator: "Accelerator") -> bool:
        """Whether any process received a signal; the same value in all processes."""
        from headstart.runtime.processes import agree

        return agree(accelerator, self.signal_name is not None)[0]
