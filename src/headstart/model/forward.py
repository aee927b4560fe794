"""A network that only predicts, in the form that the metrics of its model file were computed in."""

import contextlib
from collections.abc import Mapping
from importlib.metadata import version

import torch
from torch import nn

from headstart.backbones import Backbone
from headstart.model.build import network_of
from headstart.model.fold import fold_batchnorm
from headstart.model.gradcam import heat, heat_by_gradient

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenNetwork:
    """One of two forms, which differ by rounding.

    Plain: eval mode under autocast, as a run that trains by epochs is evaluated. Folded: every BatchNorm folded into
    its convolution, one dtype, channels last, and the head in float64, as a run on the feature bank is evaluated. A
    network whose norms cannot be folded stays under autocast in the second form, too."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        backbone: Backbone,
        *,
        precision: str,
        device: torch.device,
        folded: bool = True,
        channels_last: bool = True,
    ) -> None:
        """tensors: float32 by the names of the backbone, with or without a head; precision: no, bf16 or fp16;
        channels_last: the memory format of the plain form."""
        self.backbone, self.device, self.dtype, self.folded = backbone, device, DTYPES[precision], folded
        self._layout = torch.channels_last if folded or channels_last else torch.contiguous_format
        network = network_of(tensors, backbone).requires_grad_(False)
        head = network.without_head()
        self._mixed = self.dtype != torch.float32
        checked_at = None if backbone.plain else backbone.image_size
        if folded and fold_batchnorm(network, self.dtype, image_size=checked_at):
            self._mixed = False
        else:
            for module in network.modules():
                if isinstance(module, nn.Conv2d):  # what autocast would convert anew for every batch
                    module.to(self.dtype)
        if folded:
            if device.type != "mps":  # which has no float64; the head stays on the CPU there
                head.to(device)
            self._head = head.double()
        else:
            self._head = head.to(device, self.dtype)
        self._input_dtype = None if self._mixed or not folded else self.dtype
        self._network = network.to(device).to(memory_format=self._layout)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 (n, 3, S, S) normalised -> float32 (n, d), the pooled features, on the device."""
        return self.features(self.maps(pixels)).float()

    @torch.inference_mode()
    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 (n, 3, S, S) normalised -> (n, d, h, w), the output of the last stage, or (n, tokens, d), on the
        device."""
        x = pixels.to(self.device, self._input_dtype).contiguous(memory_format=self._layout)
        with self._autocast():
            maps = self._network.maps(x)
        return maps.float() if self.folded else maps

    @torch.inference_mode()
    def features(self, maps: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return self._network.pool_maps(maps)

    @torch.inference_mode()
    def head(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(features (n, d) float32, logits (n, C) float32), on the device."""
        features = self.features(maps)
        if self.folded:
            logits = features.to(self._head.weight.device, torch.float64) @ self._head.weight.T + self._head.bias
        else:
            with self._autocast():
                logits = self._head(features)
        return features.float(), logits.float()

    def attention(self, maps: torch.Tensor, classes: torch.Tensor) -> torch.Tensor | None:
        """Grad-CAM of one class of each image, (n,) int -> float32 (n, h, w) in [0, 1], on the device of the maps.
        None for a network whose last layer has no maps."""
        weights = self._head.weight[classes.to(self._head.weight.device)].float().to(maps.device)
        if self._network.mean_pooled:
            return heat(maps, weights)
        with self._autocast():
            return heat_by_gradient(maps, weights, self._network.pool_maps, prefix_tokens=self._network.prefix_tokens)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.dtype) if self._mixed else contextlib.nullcontext()


def bank_form(backbone: Backbone, *, precision: str, device: torch.device) -> str:
    """The form of a folded network, for the key of a bank: two forms may differ by rounding, one form does not."""
    name = str(DTYPES[precision]).removeprefix("torch.")
    libraries = f"torch {_release(torch.__version__)}"
    if not backbone.of_torchvision:
        libraries += f", timm {_release(version('timm'))}"
    return f"{backbone.name} folded {name} on {device.type}, {libraries}"


def _release(text: str) -> str:
    """Major and minor."""
    return ".".join(text.split(".")[:2])
