"""Size of a network, and its speed on this machine: a few seconds on images in memory."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from headstart.backbones import Backbone
from headstart.config import OptimConfig, StrategyConfig
from headstart.features.extraction import BATCH_CPU, BATCH_GPU
from headstart.model.build import build_model
from headstart.model.forward import DTYPES, FrozenNetwork
from headstart.model.network import Network
from headstart.recipe.optimizer import build_optimizer, plan

MEASURED_S = 1.0
"""Duration of each of the two measurements, after a first step that is not counted."""
_TRAIN_BATCH_CPU, _TRAIN_BATCH_GPU = 16, 64


@dataclass(frozen=True)
class Size:
    """parameters: number, with the head; file_bytes: of the tensors of a model file; predict_images_per_s: of the
    network that predicts; train_images_per_s: of the fine-tuning of all parameters with AdamW."""

    parameters: int
    file_bytes: int
    predict_images_per_s: float
    train_images_per_s: float


def measure(
    tensors: Mapping[str, torch.Tensor],
    backbone: Backbone,
    *,
    image_size: int,
    num_classes: int,
    precision: str,
    device: torch.device,
) -> Size:
    """tensors: of the backbone, float32. The rates are those of this process with its threads."""
    images = _drawn(BATCH_CPU if device.type == "cpu" else BATCH_GPU, image_size, device)
    predict = _predict_rate(FrozenNetwork(tensors, backbone, precision=precision, device=device), images)
    model = build_model(backbone, num_classes, tensors=tensors, head_init="zero", seed=0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    file_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    train = train_rate(model, image_size=image_size, num_classes=num_classes, precision=precision, device=device)
    return Size(parameters, file_bytes, predict, train)


def train_rate(
    model: Network,
    *,
    image_size: int,
    num_classes: int,
    precision: str,
    device: torch.device,
    seconds: float = MEASURED_S,
) -> float:
    """Images per second of the fine-tuning of all parameters with AdamW, without reading images. The model is changed.
    seconds: duration of the measurement, after a first step that is not counted."""
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(plan(model, StrategyConfig(name="fine_tune"), OptimConfig()).groups, OptimConfig())
    images = _drawn(_TRAIN_BATCH_CPU if device.type == "cpu" else _TRAIN_BATCH_GPU, image_size, device)
    labels = torch.arange(len(images), device=device) % num_classes

    def step() -> float:
        mixed = torch.autocast(device.type, dtype=DTYPES[precision]) if precision != "no" else contextlib.nullcontext()
        with mixed:
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    model.train()
    return _rate(step, len(images), seconds=seconds)


def _predict_rate(network: FrozenNetwork, images: torch.Tensor) -> float:
    return _rate(lambda: float(network(images).sum()), len(images))


def _drawn(number: int, image_size: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(number, 3, image_size, image_size, generator=generator)
    return images.to(device).contiguous(memory_format=torch.channels_last)


def _rate(step: Callable[[], float], num_images: int, *, seconds: float = MEASURED_S) -> float:
    """Images per second. The result of a step is a number, so the device has finished it. A first step that takes
    longer than `seconds` is the only one."""
    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    if first > seconds:
        return num_images / first
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * num_images / (time.perf_counter() - started)
