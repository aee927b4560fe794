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
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other one can set handlers
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()} if in_main_thread else {}
    environment, accelerate_states = dict(os.environ), [dict(shared) for shared in _accelerate_states()]
    python_random, numpy_random = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state of the user
    torch_random, threads, dtype = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
                if number == getattr(signal, "SIGCHLD", None):
                    # torch's, which it sets once to notice dead workers of data loaders; the next one sets it again
                    sys.modules["torch.utils.data._utils.signal_handling"]._SIGCHLD_handler_set = False  # type: ignore[attr-defined]
        for shared, kept in zip(_accelerate_states(), accelerate_states, strict=False):
            if kept:  # of an Accelerator of the user
                shared.clear()
                shared.update(kept)
        random.setstate(python_random)
        np.random.set_state(numpy_random)  # noqa: NPY002
        torch.set_rng_state(torch_random)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _accelerate_states() -> list[dict[str, Any]]:
    """What all Accelerators of the process share; nothing if the library is not imported yet."""
    module = sys.modules.get("accelerate.state")
    names = ("PartialState", "AcceleratorState", "GradientState") if module else ()
    return [getattr(module, name)._shared_state for name in names]
