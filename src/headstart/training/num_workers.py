"""The number of decoding processes of a training process, from measured rates of both."""

import copy
import math
import time

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from headstart.data.loaders import TransformedImages
from headstart.data.transforms import Preprocess
from headstart.model.network import Network
from headstart.runtime.hardware import cores_per_process

TIMED_IMAGES = 32
HEADROOM = 1.25  # images are prepared this much faster than they are used


def measure_num_workers(
    accelerator: Accelerator, model: Network, images: TransformedImages, spec: Preprocess, *, share: int
) -> tuple[int, str]:
    """The number of decoding processes for this process, and the measured rates in words, "" if nothing was measured.
    share: images per backward pass of this process.

    1 on a CPU: the training step uses all cores, and more processes only compete for them (`headstart bench data`).
    """
    if accelerator.device.type == "cpu":
        return 1, ""
    cores = cores_per_process()
    made, used = images_prepared_per_second(images), images_per_second(accelerator, model, spec, share=share)
    return num_workers(made, used, cores=cores), f"one prepares {made:.0f} img/s and training uses {used:.0f} img/s"


def num_workers(prepared_per_s: float, images_per_s: float, *, cores: int) -> int:
    return min(cores, max(1, math.ceil(HEADROOM * images_per_s / prepared_per_s)))


def images_prepared_per_second(images: TransformedImages) -> float:
    """Of one thread, as in a decoding process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.perf_counter()
    count = min(TIMED_IMAGES, len(images))
    for index in range(count):
        images[(index, 0)]
    spent = time.perf_counter() - started
    torch.set_num_threads(before)
    return count / spent


def images_per_second(accelerator: Accelerator, model: Network, spec: Preprocess, *, share: int) -> float:
    """Of forward and backward passes on images on the device; on a copy, so that `model` does not change."""
    rehearsal = copy.deepcopy(model).to(accelerator.device).train()
    pixels = torch.zeros((share, 3, spec.image_size, spec.image_size), dtype=torch.uint8, device=accelerator.device)
    labels = torch.zeros(share, dtype=torch.int64, device=accelerator.device)
    channels_last = next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    started = 0.0
    for number in range(6):
        if number == 3:  # the first ones allocate memory and choose kernels
            _wait(accelerator.device)
            started = time.perf_counter()
        with accelerator.autocast():
            loss = F.cross_entropy(rehearsal(spec.normalize(pixels.contiguous(memory_format=layout))), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        rehearsal.zero_grad()
    _wait(accelerator.device)
    return 3 * share / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
