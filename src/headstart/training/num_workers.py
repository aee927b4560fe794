"""How many processes prepare images for one that trains: by measuring both."""

import copy
import math
import time

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from headstart.data.loaders import TransformedImages
from headstart.data.transforms import Preprocess
from headstart.model.classifier import Classifier
from headstart.runtime.hardware import cores_per_process

VIEWS = 32  # that are timed
SPARE = 1.25  # views are made so much faster than they are used


def measure_num_workers(
    accelerator: Accelerator, model: Classifier, images: TransformedImages, spec: Preprocess, *, share: int
) -> tuple[int, str]:
    """The number of decoding processes for this one, and why. share: images per backward pass of this process.

    A CPU has one: the step uses all its cores, and more processes only take them from it (`headstart bench data`).
    """
    if accelerator.device.type == "cpu":
        return 1, "on a CPU the step wants the cores"
    cores = cores_per_process()
    made, used = images_prepared_per_second(images), images_per_second(accelerator, model, spec, share=share)
    return num_workers(made, used, cores=cores), f"a worker makes {made:.0f} views/s, a step uses {used:.0f} img/s"


def num_workers(prepared_per_s: float, images_per_s: float, *, cores: int) -> int:
    return min(cores, max(1, math.ceil(SPARE * images_per_s / prepared_per_s)))


def images_prepared_per_second(images: TransformedImages) -> float:
    """Of one thread, as in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.perf_counter()
    count = min(VIEWS, len(images))
    for index in range(count):
        images[(index, 0)]
    spent = time.perf_counter() - started
    torch.set_num_threads(before)
    return count / spent


def images_per_second(accelerator: Accelerator, model: Classifier, spec: Preprocess, *, share: int) -> float:
    """Of forward and backward passes on images that lie on the device; on a copy, so `model` does not change."""
    rehearsal = copy.deepcopy(model).to(accelerator.device).train()
    pixels = torch.zeros((share, 3, spec.image_size, spec.image_size), dtype=torch.uint8, device=accelerator.device)
    labels = torch.zeros(share, dtype=torch.int64, device=accelerator.device)
    layout = torch.channels_last if next(model.parameters()).is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format  # fmt: skip
    started = 0.0
    for number in range(6):
        if number == 3:  # the first ones allocate, and choose their kernels
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
