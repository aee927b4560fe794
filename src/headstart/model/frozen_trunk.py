"""ResNet-18 without its head as plain tensor functions: names and shapes, BatchNorm folding, the frozen forward pass.

It needs torch alone: importing torchvision costs more than extracting the features of a small folder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

BACKBONE = "resnet18"
FEATURES = 512  # width of the pooled features that the head sees
BATCHNORM_EPS = 1e-5  # torchvision's

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class _Conv:
    """One convolution and the BatchNorm that follows it; names as in torchvision's state dict."""

    conv: str
    norm: str
    shape: tuple[int, int, int, int]


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of torchvision's ResNet-18 but the head's, name -> shape."""
    expected: dict[str, tuple[int, ...]] = {}
    for layer in _convolutions():
        expected[f"{layer.conv}.weight"] = layer.shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{layer.norm}.{name}"] = (layer.shape[0],)
        expected[f"{layer.norm}.num_batches_tracked"] = ()
    return expected


def unusable(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Why no network can be computed with these tensors; None if it can. Names the first that is at fault."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            found = value[~value.isfinite()]
            return (
                f"{name} holds {float(found.flatten()[0])} ({found.numel()} of {value.numel()} numbers are not finite)"
            )
        if name.endswith("running_var") and (value < 0).any():
            return f"{name} holds {float(value.min()):g}, and a variance cannot be negative"
    return None


def form_of(*, precision: str, device: torch.device) -> str:
    """What a FrozenTrunk computes, for the key of a bank: two forms may differ by rounding, one form does not."""
    version = ".".join(torch.__version__.split(".")[:2])
    name = str(_DTYPES[precision]).removeprefix("torch.")
    return f"{BACKBONE} folded {name} on {device.type}, torch {version}"


class FrozenTrunk:
    """The backbone in eval mode with every BatchNorm folded into its convolution, in one dtype, channels last.

    Folding is exact but for rounding; it is computed in float64. No parameter here can train.
    """

    def __init__(self, backbone: Mapping[str, torch.Tensor], *, precision: str, device: torch.device) -> None:
        """backbone: state dict with `shapes()`; precision: no, bf16 or fp16."""
        self.device = device
        self.dtype = _DTYPES[precision]
        self._layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in _convolutions():
            weight, bias = _fold(backbone, layer)
            self._layers[layer.conv] = (
                weight.to(device, self.dtype).contiguous(memory_format=torch.channels_last),
                bias.to(device, self.dtype),
            )

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 (n, 3, S, S) normalised -> float32 (n, 512) pooled features."""
        return self.maps(pixels).mean(dim=(2, 3))

    @torch.inference_mode()
    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 (n, 3, S, S) normalised -> float32 (n, 512, S/32, S/32): what the last stage puts out."""
        x = pixels.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        x = self._conv("conv1", x, stride=2, padding=3)
        x = F.relu_(F.max_pool2d(x, kernel_size=3, stride=2, padding=1))  # this way round: fewer numbers, the same bits
        for stage in range(1, 5):
            for block in range(2):
                name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = F.relu_(self._conv(f"{name}.conv1", x, stride=stride, padding=1))
                y = self._conv(f"{name}.conv2", y, padding=1)
                if stride == 2:
                    x = self._conv(f"{name}.downsample.0", x, stride=2)
                x = F.relu_(y.add_(x))
        return x.float()

    def _conv(self, name: str, x: torch.Tensor, *, stride: int = 1, padding: int = 0) -> torch.Tensor:
        weight, bias = self._layers[name]
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)


def _convolutions() -> Iterator[_Conv]:
    yield _Conv("conv1", "bn1", (64, 3, 7, 7))
    width_in = 64
    for stage, width in enumerate(_WIDTHS, start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            yield _Conv(f"{name}.conv1", f"{name}.bn1", (width, width_in, 3, 3))
            yield _Conv(f"{name}.conv2", f"{name}.bn2", (width, width, 3, 3))
            if width_in != width:
                yield _Conv(f"{name}.downsample.0", f"{name}.downsample.1", (width, width_in, 1, 1))
            width_in = width


def _fold(tensors: Mapping[str, torch.Tensor], layer: _Conv) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight, bias) float64 of the convolution that equals convolution + BatchNorm in eval mode."""
    scale, shift, mean, var = (
        tensors[f"{layer.norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / (var + BATCHNORM_EPS).sqrt()
    weight = tensors[f"{layer.conv}.weight"].double() * factor.view(-1, 1, 1, 1)
    return weight, shift - mean * factor
