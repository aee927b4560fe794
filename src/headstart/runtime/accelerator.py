"""The Accelerator of a run, its threads, and a record of the environment."""

import os
import platform
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psutil
import torch

from headstart.config import RuntimeConfig
from headstart.errors import InputError
from headstart.runtime.hardware import cores_per_process
from headstart.runtime.precision import choose_precision
from headstart.runtime.signals import end_with_launcher

if TYPE_CHECKING:  # imported where it is used: a model is loaded and asked without it
    from accelerate import Accelerator


def set_threads(threads: int | None) -> int:
    """Threads of torch in this process; None shares the cores out over the processes on this machine.

    Launchers export OMP_NUM_THREADS=1 (torchrun) or leave it to chance (accelerate), so it is not asked.
    """
    chosen = threads or cores_per_process()
    torch.set_num_threads(chosen)
    return chosen


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
