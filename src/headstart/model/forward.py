"""The network of a model file as plain tensor functions, in the form that its metrics were measured in. Needs torch alone:
importing torchvision takes longer than loading the file."""

import contextlib
from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn import functional as F

from headstart.model.frozen_trunk import BATCHNORM_EPS, FrozenTrunk

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Form(Protocol):
    """How logits are computed. weight: (C, 512) of the head."""

    device: torch.device
    weight: torch.Tensor

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 (n, 3, S, S) normalised, on the device -> (n, 512, S/32, S/32), what the last stage puts out, there."""

    def head(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(features (n, 512) float32, logits (n, C) float32), there."""


def form_of(
    tensors: Mapping[str, torch.Tensor], *, measured_on: str, precision: str, channels_last: bool, device: torch.device
) -> Form:
    """tensors: torchvision's names, float32; measured_on: as in the model file; precision: no, bf16 or fp16."""
    if measured_on == "feature bank":
        return TrunkAndHead(tensors, precision=precision, device=device)
    return Network(tensors, precision=precision, channels_last=channels_last, device=device)


class Network:
    """torchvision's ResNet-18 in eval mode: the same operations in the same order under the same autocast, so the same logits
    as the module's."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], *, precision: str, channels_last: bool, device: torch.device
    ) -> None:
        self.device = device
        self._dtype = DTYPES[precision]
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._tensors: dict[str, torch.Tensor] = {}
        for name, value in tensors.items():
            if name.endswith("num_batches_tracked"):
                continue
            if value.dim() == 4 or name.startswith("fc."):  # what autocast would convert anew for every batch
                value = value.to(self._dtype)
            layout = self._layout if value.dim() == 4 else torch.preserve_format
            self._tensors[name] = value.to(device, memory_format=layout)
        self.weight = self._tensors["fc.weight"]

    @torch.inference_mode()
    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.contiguous(memory_format=self._layout)
        with self._autocast():
            x = self._norm("bn1", self._conv("conv1", x, stride=2, padding=3))
            # the other way round than torchvision: the same bits, and a quarter of the numbers to look at
            x = F.relu(F.max_pool2d(x, kernel_size=3, stride=2, padding=1), inplace=True)
            for stage in range(1, 5):
                for block in range(2):
                    x = self._block(x, f"layer{stage}.{block}", stride=2 if stage > 1 and block == 0 else 1)
        return x

    @torch.inference_mode()
    def head(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with self._autocast():
            features = torch.flatten(F.adaptive_avg_pool2d(maps, (1, 1)), 1)
            logits = F.linear(features, self._tensors["fc.weight"], self._tensors["fc.bias"])
        return features.float(), logits.float()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        mixed = self._dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self._dtype) if mixed else contextlib.nullcontext()

    def _block(self, x: torch.Tensor, name: str, *, stride: int) -> torch.Tensor:
        y = F.relu(self._norm(f"{name}.bn1", self._conv(f"{name}.conv1", x, stride=stride, padding=1)), inplace=True)
        y = self._norm(f"{name}.bn2", self._conv(f"{name}.conv2", y, padding=1))
        if stride == 2:
            x = self._norm(f"{name}.downsample.1", self._conv(f"{name}.downsample.0", x, stride=2))
        y += x
        return F.relu(y, inplace=True)

    def _conv(self, name: str, x: torch.Tensor, *, stride: int = 1, padding: int = 0) -> torch.Tensor:
        return F.conv2d(x, self._tensors[f"{name}.weight"], None, stride, padding)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var = self._tensors[f"{name}.running_mean"], self._tensors[f"{name}.running_var"]
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return F.batch_norm(x, mean, var, weight, bias, False, 0.1, BATCHNORM_EPS)


class TrunkAndHead:
    """The folded trunk, and the head in float64, as a run on the feature bank measures itself."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], *, precision: str, device: torch.device) -> None:
        self.device = device
        self._trunk = FrozenTrunk(tensors, precision=precision, device=device)
        exact = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self.weight, self._bias = (tensors[f"fc.{name}"].to(exact, torch.float64) for name in ("weight", "bias"))

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._trunk.maps(pixels)

    @torch.inference_mode()
    def head(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = maps.mean(dim=(2, 3))
        exact = features.to(self.weight.device, torch.float64)
        return features, (exact @ self.weight.T + self._bias).float()
