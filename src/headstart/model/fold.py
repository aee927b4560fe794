"""Fold BatchNorm into convolutions, for networks that only predict."""

import torch
from torch import nn

from headstart.model.network import Network

TOLERANCE = 1e-3
"""Largest difference of the maps between the folded and the original network in float32, as a share of the largest
value. Rounding gives 1e-6; a BatchNorm that was folded into another convolution than its own gives 0.1 and more."""


@torch.no_grad()
def fold_batchnorm(network: Network, dtype: torch.dtype, *, image_size: int | None = None) -> bool:
    """Fold every BatchNorm into the convolution before it, in place: biased convolutions in `dtype`, and of a
    BatchNorm only its activation, if it has one. False, and nothing is changed, unless the network consists of pairs
    of a convolution and a BatchNorm.

    In eval mode the result is the same except for rounding; folding is computed in float64. The tensors that the
    network had are not changed. image_size: of the images with which that is checked, for a network that is not known
    to consist of such pairs."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    owned = {id(parameter) for module in (*convolutions, *norms.values()) for parameter in module.parameters()}
    if (
        not norms
        or any(id(parameter) not in owned for parameter in network.parameters())
        or [one.out_channels for one in convolutions] != [norm.num_features for norm in norms.values()]
    ):
        return False
    folded = [_folded(*pair) for pair in zip(convolutions, norms.values(), strict=True)]
    if image_size is not None:
        pixels = torch.rand((1, 3, image_size, image_size), generator=torch.Generator().manual_seed(0)) * 4 - 2
        expected, original = network.maps(pixels), [(one.weight, one.bias) for one in convolutions]
        _set(convolutions, folded, torch.float32)
        _replace(network, {name: _activation(norm) for name, norm in norms.items()})
        found = network.maps(pixels)
        if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
            for convolution, (weight, bias) in zip(convolutions, original, strict=True):
                convolution.weight, convolution.bias = weight, bias
            _replace(network, norms)
            return False
    _set(convolutions, folded, dtype)
    _replace(network, {name: _activation(norm) for name, norm in norms.items()})
    return True


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.double() - norm.running_mean.double() * factor
    if convolution.bias is not None:
        bias += convolution.bias.double() * factor
    return convolution.weight.double() * factor.view(-1, 1, 1, 1), bias


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    """What timm's BatchNormAct2d does after the normalisation."""
    activation: nn.Module = getattr(norm, "act", None) or nn.Identity()
    return activation


def _set(convolutions: list[nn.Conv2d], tensors: list[tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype) -> None:
    for convolution, (weight, bias) in zip(convolutions, tensors, strict=True):
        convolution.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        convolution.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _replace(network: Network, modules: "dict[str, nn.Module] | dict[str, nn.BatchNorm2d]") -> None:
    for name, module in modules.items():
        network.set_submodule(name, module)
