"""`headstart doctor`: what this machine and this installation offer, and what would slow a run down or stop it."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from headstart.runtime.accelerator import best_device, set_threads, versions
from headstart.runtime.hardware import free_memory, free_shared_memory, usable_cores
from headstart.runtime.precision import choose_precision, describe_precision

MEASURE_S = 1.0


def examine() -> dict[str, Any]:
    """Name -> finding, in the order in which they are printed; JSON values."""
    threads = set_threads(None)
    device = best_device()
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "device": device.type,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cores": {"usable": usable_cores(), "of the machine": os.cpu_count()},
        "threads of torch": threads,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset"),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "free memory, GiB": round(free_memory() / 2**30, 1),
        "precision by auto": describe_precision(*choose_precision("auto", device)),
        "bf16 against fp32, speed of a convolution": round(_bf16_gain(device), 2),
        "process groups": [name for name in ("gloo", "nccl", "mpi") if _has_backend(name)],
        "versions": versions(),
    }
    if Path("/dev/shm").exists():
        found["shared memory, GiB"] = round(free_shared_memory() / 2**30, 2)
    return found


def warnings_of(found: dict[str, Any]) -> list[str]:
    """What to look at, a sentence each."""
    said = []
    if found.get("shared memory, GiB", 1.0) < 0.5:
        said.append(
            f"/dev/shm has {found['shared memory, GiB']} GiB free; decoding processes pass batches through it: give a container "
            "--shm-size 2g, or set --data.num_workers 0"
        )
    gain = found["bf16 against fp32, speed of a convolution"]
    if found["precision by auto"].startswith("bf16") and gain < 1:
        said.append(f"bf16 is {gain} times as fast as fp32 here; --runtime.mixed_precision no may be faster")
    if found["cores"]["usable"] < (found["cores"]["of the machine"] or 1):
        said.append(
            f"only {found['cores']['usable']} of {found['cores']['of the machine']} cores may be used by this process"
        )
    if found["free memory, GiB"] < 2:
        said.append(f"{found['free memory, GiB']} GiB of memory are free; lower --train.batch_size if a run is killed")
    return said


def _bf16_gain(device: torch.device) -> float:
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.randn(8, 64, 56, 56, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(64, 64, 3, 3, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
        count, started = 0, 0.0
        with torch.inference_mode():
            for _ in range(3):
                torch.nn.functional.conv2d(images, weight, padding=1)
            started = time.perf_counter()
            while time.perf_counter() - started < MEASURE_S:
                out = torch.nn.functional.conv2d(images, weight, padding=1)
                count += 1
            float(out[0, 0, 0, 0])  # waits for a GPU
        rates.append(count / (time.perf_counter() - started))
    return rates[1] / rates[0]


def _has_backend(name: str) -> bool:
    available = getattr(torch.distributed, f"is_{name}_available", None)
    return torch.distributed.is_available() and available is not None and bool(available())
