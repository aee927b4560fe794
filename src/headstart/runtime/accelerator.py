"""The device and the Accelerator of a run, the threads of torch, and the versions of the libraries."""

import os
import platform
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from headstart.config import RuntimeConfig
from headstart.errors import InputError, OwnInputError
from headstart.launcher import num_processes, wrong_environment
from headstart.messages import LOG
from headstart.runtime.hardware import cores_per_process
from headstart.runtime.precision import choose_precision
from headstart.runtime.signals import end_with_launcher
from headstart.wording import one_line

if TYPE_CHECKING:  # prediction does not need accelerate, so it is imported only in functions
    from accelerate import Accelerator

LIBRARIES = ("torch", "torchvision", "accelerate", "datasets", "evaluate", "safetensors", "timm", "pillow", "numpy")


def set_threads(threads: int | None) -> int:
    """Set and return the number of torch threads of this process. None: the usable cores divided by the number of
    processes on this machine.

    OMP_NUM_THREADS is ignored: torchrun sets it to 1, and accelerate sets it in some cases only.
    """
    chosen = threads or cores_per_process()
    torch.set_num_threads(chosen)
    return chosen


def start_accelerator(runtime: RuntimeConfig, *, accumulation: int = 1) -> "Accelerator":
    """The Accelerator of this run. Each process gets a share of every batch, so the batch size is the global one,
    and the scheduler advances once per optimizer step. Raises InputError for a precision that the device does not
    support, and for an incomplete environment of a launcher."""
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    if problem := wrong_environment():
        raise OwnInputError(problem)
    end_with_launcher()
    device = torch.device("cpu") if runtime.cpu else best_device()
    on_cpu = device.type == "cpu"
    distributed = num_processes() > 1
    handlers: list[Any] = []
    if distributed:
        # gloo by name: a torch built with MPI would prefer MPI, which lacks some of the collectives
        timeout = timedelta(minutes=runtime.timeout_minutes)
        handlers.append(InitProcessGroupKwargs(backend="gloo" if on_cpu else None, timeout=timeout))
    elif os.environ.get("MASTER_ADDR") and "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        LOG.info(
            "the launcher requested several processes but started only this one, as accelerate launch does on a CPU; "
            "for N processes use ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m headstart train ..., or "
            "./launch.sh --processes N"
        )
    precision, _ = choose_precision(runtime.mixed_precision, device)
    # Accelerate keeps one state per process, but a second run in a notebook may use another precision
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    GradientState._reset_state()
    try:
        accelerator = Accelerator(
            cpu=on_cpu,
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
    except (ValueError, ImportError, RuntimeError) as error:
        given = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("ACCELERATE_")]
        if not given or distributed:
            raise
        raise InputError(
            f"Accelerate cannot start: {one_line(error)}; correct or unset what is in the environment: "
            f"{', '.join(given)}"
        ) from None
    if accelerator.gradient_accumulation_steps != accumulation:
        raise InputError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {accelerator.gradient_accumulation_steps} in the environment "
            f"but train.accumulation is {accumulation}; unset the variable"
        )
    return accelerator


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU. ACCELERATE_USE_CPU forces the CPU, with the values of Accelerate."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("y", "yes", "t", "true", "on", "1"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
    return torch.device("cpu")


def memory_in_use(device: torch.device) -> int:
    """Bytes that torch has reserved on a CUDA GPU, else the resident memory of this process. Does not synchronize."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    import psutil  # 30 ms of the start of predict and serve

    return int(psutil.Process().memory_info().rss)


def versions() -> dict[str, str]:
    """Versions of headstart, Python and the libraries that determine the results of a run."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("headstart", *LIBRARIES)}}
