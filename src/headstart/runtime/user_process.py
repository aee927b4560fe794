"""What a call of headstart leaves as it was in the Python process of its user."""

import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def restored_process() -> Iterator[None]:
    """Restore what libraries change for the whole process: the environment, signal handlers, the random states of
    Python, numpy and torch, torch's threads, dtype and determinism, and the state of Accelerate."""
    environment, handlers, states = dict(os.environ), _signal_handlers(), _states()
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        _restore_handlers(handlers)
        _restore(states)


def _signal_handlers() -> dict[int, Any]:
    """Only the main thread can set handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _restore_handlers(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
            if number == getattr(signal, "SIGCHLD", None):
                # torch's, which it sets once to notice dead workers of data loaders; the next one sets it again
                sys.modules["torch.utils.data._utils.signal_handling"]._SIGCHLD_handler_set = False  # type: ignore[attr-defined]


def _states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the state of the user
        "accelerate": [dict(shared) for shared in _accelerate_states()],
        "seed": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }


def _restore(before: dict[str, Any]) -> None:
    random.setstate(before["python"])
    np.random.set_state(before["numpy"])  # noqa: NPY002
    for shared, kept in zip(_accelerate_states(), before["accelerate"], strict=False):
        if kept:  # of an Accelerator of the user
            shared.clear()
            shared.update(kept)
    torch.set_rng_state(before["seed"])
    torch.set_num_threads(before["threads"])
    torch.set_default_dtype(before["dtype"])
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warn_only"])


def _accelerate_states() -> list[dict[str, Any]]:
    """What all Accelerators of the process share; nothing if the library is not imported yet."""
    module = sys.modules.get("accelerate.state")
    names = ("PartialState", "AcceleratorState", "GradientState") if module else ()
    return [getattr(module, name)._shared_state for name in names]
