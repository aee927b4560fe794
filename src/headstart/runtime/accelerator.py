"""The machine: the Accelerator, threads, precision, signals, and a record of the environment."""

import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch

from headstart.config import RuntimeConfig
from headstart.errors import InputError
from headstart.runtime.hardware import usable_cores

if TYPE_CHECKING:  # imported where it is used: a model is loaded and asked without it
    from accelerate import Accelerator

_T = TypeVar("_T")


def set_threads(threads: int | None) -> int:
    """Threads of torch in this process; None shares the cores out over the processes on this machine.

    Launchers export OMP_NUM_THREADS=1 (torchrun) or leave it to chance (accelerate), so it is not asked.
    """
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = threads or max(1, usable_cores() // local_processes)
    torch.set_num_threads(chosen)
    return chosen


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """("no" | "bf16" | "fp16", why), decided from what the device can do, never from a timing.

    What the launcher was asked for (--mixed_precision, or its configuration file) counts as asked; its "no" is also what it says when
    it was asked for nothing, so that decides nothing.
    Raises InputError for fp16 where Accelerate would silently compute in fp32, and if launcher and configuration contradict.
    """
    kind = device.type
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launcher not in ("no", asked):
        if asked != "auto":
            raise InputError(
                f"the launcher was asked for {launcher} and runtime.mixed_precision is {asked}; give the same to both, or to one"
            )
        if launcher not in ("bf16", "fp16"):
            raise InputError(
                f"the launcher was asked for {launcher}, which headstart does not do; use bf16, fp16 or no"
            )
        return choose_precision(launcher, device)[0], "as the launcher was asked"
    if asked == "fp16" and kind != "cuda":
        raise InputError(f"runtime.mixed_precision fp16 needs a CUDA GPU and this run is on {kind}; use bf16 or no")
    if asked != "auto":
        return asked, "as asked"
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU multiplies bf16 natively"
        return "fp16", "the GPU has no native bf16"
    if kind == "cpu":
        if _cpu_has_bf16():
            return "bf16", "the processor multiplies bf16 natively (AVX512-BF16 or AMX)"
        return "no", "the processor has no native bf16"
    return "no", f"mixed precision is not tried on {kind}"


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively, and oneDNN may use that (ONEDNN_MAX_CPU_ISA can forbid it)."""
    checks = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", None),
        getattr(torch.cpu, "_is_amx_tile_supported", None),
    )
    return any(check() for check in checks if check is not None) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def start_accelerator(runtime: RuntimeConfig, *, accumulation: int = 1) -> "Accelerator":
    """The Accelerator of this run. Batches are split, so the batch size is the global one and the scheduler
    steps once per update. Raises InputError for a precision that the device cannot honour."""
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    end_with_launcher()
    device_is_cpu = runtime.cpu or not _has_accelerator()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    handlers: list[Any] = []
    if several:  # alone there is no group
        # gloo by name: an MPI build of torch would be preferred and lacks the collectives
        patience = timedelta(minutes=runtime.timeout_minutes)
        handlers.append(InitProcessGroupKwargs(backend="gloo" if device_is_cpu else None, timeout=patience))
    elif os.environ.get("MASTER_ADDR") and "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        print(
            "the launcher was asked for several processes and started this one alone, as accelerate launch does on a CPU; "
            "for N processes: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m headstart train ..., or "
            "./launch.sh --processes N"
        )
    asked = runtime.mixed_precision
    device = torch.device("cpu" if device_is_cpu else _accelerator_type())
    precision, _ = choose_precision(asked, device)
    # Accelerate keeps one state per process; a second run in a notebook may ask for another precision
    AcceleratorState._reset_state(reset_partial_state=not several)
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=device_is_cpu,
        mixed_precision=precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=True, non_blocking=True),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=accumulation, adjust_scheduler=False, sync_with_dataloader=False
        ),
        step_scheduler_with_optimizer=True,
        dynamo_backend="inductor" if runtime.compile else None,
        rng_types=[],  # nothing depends on the global random state
        kwargs_handlers=handlers,
    )
    if accelerator.gradient_accumulation_steps != accumulation:
        raise InputError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={accelerator.gradient_accumulation_steps} in the environment "
            f"contradicts train.accumulation {accumulation}; unset it"
        )
    return accelerator


def best_device() -> torch.device:
    """The GPU if there is one, unless ACCELERATE_USE_CPU says otherwise."""
    return torch.device(_accelerator_type() if _has_accelerator() else "cpu")


def _has_accelerator() -> bool:
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return not forced and (torch.cuda.is_available() or torch.backends.mps.is_available())


def _accelerator_type() -> str:
    return "cuda" if torch.cuda.is_available() else "mps"


def memory_in_use(device: torch.device) -> int | None:
    """Bytes: what torch has reserved of a GPU, or what this process holds in memory. Does not wait for the device."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def on_main(accelerator: "Accelerator", work: Callable[[], _T]) -> _T:
    """The main process's result in every process. What it raises ends every process, so that none waits."""
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as raised:
            error, outcome[1] = raised, str(raised)
    from accelerate.utils import broadcast_object_list

    broadcast_object_list(outcome)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise InputError(outcome[1])
    result: _T = outcome[0]
    return result


def from_all(accelerator: "Accelerator", value: _T) -> list[_T]:
    """Every process's value, by rank, in every process."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[_T] = gather_object([value])
    return found


def on_each_host(accelerator: "Accelerator", work: Callable[[], None]) -> None:
    """Do the work in the first process of each host, while the others wait. All raise InputError if it fails on one."""
    error: Exception | None = None
    if accelerator.is_local_main_process:
        try:
            work()
        except Exception as raised:
            error = raised
    failures = [text for text in from_all(accelerator, None if error is None else str(error)) if text is not None]
    if error is not None:
        raise error
    if failures:
        raise InputError(failures[0])


def agree(accelerator: "Accelerator", *flags: bool) -> list[bool]:
    """For each flag, whether any process has raised it; the same answer everywhere."""
    if accelerator.num_processes == 1:
        return list(flags)
    raised = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [value > 0 for value in accelerator.reduce(raised, "sum").tolist()]


def finish(accelerator: "Accelerator", *, last: bool) -> None:
    """The end of a run. last: the processes part; otherwise they stay together for the next run, and trackers end alone."""
    accelerator.wait_for_everyone()
    if last:
        accelerator.end_training()
    else:
        for tracker in accelerator.trackers:
            tracker.finish()


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


def versions() -> dict[str, str]:
    """What computed this run: headstart, Python and the libraries."""
    names = (
        "headstart",
        "torch",
        "torchvision",
        "accelerate",
        "datasets",
        "evaluate",
        "safetensors",
        "pillow",
        "numpy",
    )
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
