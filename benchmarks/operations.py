"""Time of the operations of a backbone on the CPU: convolutions by kind, BatchNorm, activations, the rest.

    python benchmarks/operations.py lite0 resnet18 --image_size 112

For a training step (forward and backward pass of all parameters, batch 32) in both memory layouts, and for the frozen
network as it computes features (batch 16), with BatchNorm folded into the convolutions and without. Shares are those of
the time that torch's profiler attributes to each operation itself. The rows take turns over the rounds; medians.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from headstart.backbones import Backbone
from headstart.model.backbones import find_backbone
from headstart.model.build import build_model
from headstart.model.fold import fold_batchnorm
from headstart.model.network import Network

KINDS = ("depthwise", "1x1", "other convolution", "BatchNorm", "activation", "rest")
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def kind_of(event: FunctionEvent) -> str | None:
    """One of KINDS; None for an event that only contains others."""
    name = event.name
    if name in ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::_slow_conv2d_forward"):
        shapes = [shape for shape in event.input_shapes if len(shape) == 4]
        weight = shapes[1] if name != "aten::convolution_backward" else shapes[2]
        if weight[1] == 1:
            return "depthwise"
        return "1x1" if weight[2:] == [1, 1] else "other convolution"
    if "batch_norm" in name:
        return "BatchNorm"
    if any(part in name for part in ("relu", "hardtanh", "clamp", "threshold")):
        return "activation"
    return "rest" if name.startswith("aten::") else None


def shares(step: Callable[[], object]) -> dict[str, float]:
    """By kind: share of the time of a step."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        step()
    times: dict[str, float] = defaultdict(float)
    for event in found.events() or []:
        if (kind := kind_of(event)) is not None:
            times[kind] += event.self_cpu_time_total
    return {kind: times[kind] / sum(times.values()) for kind in KINDS}


def network(backbone: Backbone, layout: torch.memory_format) -> Network:
    return build_model(backbone, 2, tensors=None, head_init="zero", seed=0).to(memory_format=layout)


def training(backbone: Backbone, side: int, layout: torch.memory_format) -> tuple[Callable[[], object], int]:
    model = network(backbone, layout).train()
    pixels = torch.rand(32, 3, side, side).contiguous(memory_format=layout)
    labels = torch.arange(len(pixels)) % 2

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()

    return step, len(pixels)


def features(backbone: Backbone, side: int, *, folded: bool) -> tuple[Callable[[], object], int]:
    model = network(backbone, torch.channels_last).eval()
    model.without_head()
    if folded:
        fold_batchnorm(model, torch.float32)
    pixels = torch.rand(16, 3, side, side).contiguous(memory_format=torch.channels_last)
    return torch.inference_mode()(lambda: model(pixels)), len(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=["lite0", "resnet18"])
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = {}
    for backbone in map(find_backbone, args.backbones):
        for name, layout in LAYOUTS.items():
            rows[f"`{backbone.name}`, training, {name}"] = training(backbone, args.image_size, layout)
        for name, folded in (("folded", True), ("not folded", False)):
            rows[f"`{backbone.name}`, features, {name}"] = features(backbone, args.image_size, folded=folded)
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.rounds + 1):  # the first is for warming up
        for name, (step, images) in rows.items():
            started = time.perf_counter()
            step()
            rates[name].append(images / (time.perf_counter() - started))
    print(f"| network, {args.image_size} px | img/s | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 2)}")
    for name, (step, _) in rows.items():
        found = [f"{share:.0%}" for share in shares(step).values()]
        print(f"| {name} | {statistics.median(rates[name][1:]):.1f} | {' | '.join(found)} |")


if __name__ == "__main__":
    main()
