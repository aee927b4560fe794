"""`headstart doctor`: hardware and software of this machine, and problems that slow a run down or stop it."""

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
    """Name -> value that JSON can hold, in the order in which they are printed."""
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


def print_environment(found: dict[str, Any]) -> None:
    for name, value in found.items():
        text = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else value
        print(f"{name}: {', '.join(text) or 'none' if isinstance(text, list) else text}")
    for sentence in warnings_of(found) or ["no problems found"]:
        print(f"- {sentence}")


def warnings_of(found: dict[str, Any]) -> list[str]:
    """Problems that slow a run down or stop it, a sentence each."""
    sentences = []
    if found.get("shared memory, GiB", 1.0) < 0.5:
        sentences.append(
            f"/dev/shm, which decoding processes pass batches through, has {found['shared memory, GiB']} GiB free; "
            "start a container with --shm-size 2g, or set --data.num_workers 0"
        )
    gain = found["bf16 against fp32, speed of a convolution"]
    if found["precision by auto"].startswith("bf16") and gain < 1:
        sentences.append(f"bf16 is slower than fp32 here ({gain} times the speed); set --runtime.mixed_precision no")
    if found["cores"]["usable"] < (found["cores"]["of the machine"] or 1):
        sentences.append(
            f"this process may use only {found['cores']['usable']} of {found['cores']['of the machine']} cores"
        )
    if found["free memory, GiB"] < 2:
        sentences.append(
            f"only {found['free memory, GiB']} GiB of memory are free; if a run is killed, lower --train.batch_size"
        )
    return sentences


def _bf16_gain(device: torch.device) -> float:
    """Speed of a convolution in bf16, divided by that in fp32."""
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        images = torch.randn(8, 64, 56, 56, **kind).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(64, 64, 3, 3, **kind).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            for _ in range(3):  # warm-up
                torch.nn.functional.conv2d(images, weight, padding=1)
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < MEASURE_S:
                out = torch.nn.functional.conv2d(images, weight, padding=1)
                count += 1
            float(out[0, 0, 0, 0])  # waits for a GPU
        rates.append(count / (time.perf_counter() - started))
    return rates[1] / rates[0]


def _has_backend(name: str) -> bool:
    available = getattr(torch.distributed, f"is_{name}_available", None)
    return torch.distributed.is_available() and available is not None and bool(available())
