"""Speed and size of backbones on this machine: features, training, parameters, weights.

    python benchmarks/backbones.py resnet18 lite0 lite1 --rounds 3

Features: the frozen network in the form of the feature bank, on images in memory, one process per core in batches of 16
as `headstart train` extracts them. Training: forward and backward pass of all parameters with batches of 32. The
backbones take turns; medians over the rounds. Random weights, at the size of images that the backbone was trained with
unless --image_size names another.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch.nn import functional as F

from headstart.backbones import BACKBONES, Backbone
from headstart.model.backbones import find_backbone
from headstart.model.build import backbone_shapes, build_model
from headstart.model.forward import FrozenNetwork
from headstart.runtime.hardware import usable_cores

SECONDS = 4.0  # of each measurement


def rate(step: Callable[[], object], images: int) -> float:
    """Images per second."""
    step()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        step()
        count += 1
    return count * images / (time.perf_counter() - started)


def feature_rate(backbone: Backbone, side: int, precision: str) -> float:
    """Of one process with one thread."""
    torch.set_num_threads(1)
    model = build_model(backbone, 2, tensors=None, head_init="zero", seed=0)
    model.without_head()
    network = FrozenNetwork(model.state_dict(), backbone, precision=precision, device=torch.device("cpu"))
    pixels = torch.rand(16, 3, side, side).contiguous(memory_format=torch.channels_last)
    return rate(lambda: network(pixels), len(pixels))


def training_rate(backbone: Backbone, side: int, precision: str) -> float:
    model = (
        build_model(backbone, 2, tensors=None, head_init="zero", seed=0).train().to(memory_format=torch.channels_last)
    )
    pixels = torch.rand(32, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(len(pixels)) % 2

    def step() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(pixels), labels)
        loss.backward()

    return rate(step, len(pixels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=list(BACKBONES))
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    args = parser.parse_args()
    cores = usable_cores()
    found: dict[str, dict[str, list[float]]] = {}
    with ProcessPoolExecutor(cores, mp_context=get_context("fork")) as pool:
        for _ in range(args.rounds):
            for backbone in map(find_backbone, args.backbones):
                side = args.image_size or backbone.image_size
                rates = found.setdefault(backbone.name, {"features": [], "training": []})
                one = partial(feature_rate, side=side, precision=args.precision)
                rates["features"].append(sum(pool.map(one, [backbone] * cores)))
                rates["training"].append(training_rate(backbone, side, args.precision))
    print(f"| backbone | pixels | parameters | features | features, img/s | training, img/s |\n|{'---|' * 6}")
    for name, rates in found.items():
        backbone = find_backbone(name)
        numbers = sum(torch.Size(shape).numel() for shape in backbone_shapes(backbone).values())
        medians = [f"{statistics.median(rates[kind]):.1f}" for kind in ("features", "training")]
        side = args.image_size or backbone.image_size
        print(f"| `{name}` | {side} | {numbers / 1e6:.1f} M | {backbone.features} | {' | '.join(medians)} |")


if __name__ == "__main__":
    main()
