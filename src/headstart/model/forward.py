"""A network that only predicts, in the form that the metrics of its model file were computed in."""

import contextlib
from collections.abc import Mapping

import torch
from torch import nn

from headstart.model.backbones import RESNET18
from headstart.model.network import fold_batchnorm, network_of

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenNetwork:
    """One of two forms, which differ by rounding.

    Plain: eval mode under autocast, as a run that trains by epochs is evaluated. Folded: every BatchNorm folded into
    its convolution, one dtype, channels last, and the head in float64, as a run on the feature bank is evaluated."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        precision: str,
        device: torch.device,
        folded: bool = True,
        channels_last: bool = True,
    ) -> None:
        """tensors: float32 by torchvision's names, with or without a head; precision: no, bf16 or fp16; channels_last:
        the memory format of the plain form."""
        self.device, self.dtype, self.folded = device, DTYPES[precision], folded
        self._layout = torch.channels_last if folded or channels_last else torch.contiguous_format
        network = network_of(tensors).requires_grad_(False)
        head = network.fc
        network.fc = nn.Identity()  # type: ignore[assignment]
        if folded:
            fold_batchnorm(network, self.dtype)
            if device.type != "mps":  # which has no float64; the head stays on the CPU there
                head.to(device)
            self._head = head.double()
        else:
            self._head = head.to(device, self.dtype)
            for module in network.modules():
                if isinstance(module, nn.Conv2d):  # what autocast would convert anew for every batch
                    module.to(self.dtype)
        self._network = network.to(device).to(memory_format=self._layout)

    @property
    def weight(self) -> torch.Tensor:
        """(C, 512) of the head."""
        weight: torch.Tensor = self._head.weight
        return weight

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 (n, 3, S, S) normalised -> float32 (n, 512), the pooled features, on the device."""
        return self.features(self.maps(pixels)).float()

    @torch.inference_mode()
    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 (n, 3, S, S) normalised -> (n, 512, S / 32, S / 32), the output of the last stage, on the device."""
        x = pixels.to(self.device, self.dtype if self.folded else None).contiguous(memory_format=self._layout)
        with self._autocast():
            maps = self._network.maps(x)
        return maps.float() if self.folded else maps

    @torch.inference_mode()
    def features(self, maps: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return self._network.pool(maps)

    @torch.inference_mode()
    def head(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(features (n, 512) float32, logits (n, C) float32), on the device."""
        features = self.features(maps)
        if self.folded:
            logits = features.to(self.weight.device, torch.float64) @ self.weight.T + self._head.bias
        else:
            with self._autocast():
                logits = self._head(features)
        return features.float(), logits.float()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        mixed = not self.folded and self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype) if mixed else contextlib.nullcontext()


def bank_form(*, precision: str, device: torch.device) -> str:
    """The form of a folded network, for the key of a bank: two forms may differ by rounding, one form does not."""
    version = ".".join(torch.__version__.split(".")[:2])
    name = str(DTYPES[precision]).removeprefix("torch.")
    return f"{RESNET18.name} folded {name} on {device.type}, torch {version}"
