"""The network, defined once: it trains, predicts and computes features.

ResNet of basic blocks (He et al. 2016, arXiv:1512.03385) with the operations and the state-dict keys of
torchvision.models.resnet. It needs torch alone: importing torchvision takes longer than loading a model file.
"""

from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from headstart.model.backbones import RESNET18


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (n, width_in, h, w) -> (n, width, h / stride, w / stride)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        # made before the others, so that random numbers are drawn in the order of torchvision
        downsample = None
        if stride != 1 or width_in != width:
            downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Network(nn.Module):
    """forward: float (n, 3, S, S) normalised pixels -> (n, num_classes) logits.

    num_classes: None for the backbone alone, which gives features (n, 512)."""

    def __init__(self, num_classes: int | None) -> None:
        super().__init__()
        width = RESNET18.widths[0]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, (depth, wider) in enumerate(zip(RESNET18.depths, RESNET18.widths, strict=True), start=1):
            first = BasicBlock(width, wider, stride=1 if stage == 1 else 2)
            self.add_module(
                f"layer{stage}", nn.Sequential(first, *(BasicBlock(wider, wider, 1) for _ in range(1, depth)))
            )
            width = wider
        self.fc: nn.Linear = nn.Identity() if num_classes is None else nn.Linear(width, num_classes)  # type: ignore
        self._in_eval: list[nn.Module] = []

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) -> (n, 512, S / 32, S / 32), the output of the last stage."""
        x: torch.Tensor = self.bn1(self.conv1(pixels))
        # torchvision has ReLU first; values and gradients are the same, and here ReLU sees a quarter of the numbers
        x = F.relu(F.max_pool2d(x, kernel_size=3, stride=2, padding=1), inplace=True)
        for stage in range(1, len(RESNET18.depths) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """(n, 512, h, w) -> (n, 512), the mean of each map."""
        return torch.flatten(F.adaptive_avg_pool2d(maps, (1, 1)), 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.pool(self.maps(pixels)))
        return logits

    def keep_in_eval(self, names: Iterable[str]) -> None:
        """From now on `train()` leaves these modules in eval mode, so BatchNorm statistics there cannot move."""
        self._in_eval = [self.get_submodule(name) for name in names]
        self.train(self.training)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for module in self._in_eval:
            module.eval()
        return self


def build_model(num_classes: int, *, backbone: Mapping[str, torch.Tensor] | None, head_init: str, seed: int) -> Network:
    """A network with the backbone's weights (float32) and a fresh head; random throughout without them.

    Initialisation is a function of the seed and that of torchvision; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(num_classes)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if head_init == "zero":
            for parameter in network.fc.parameters():
                nn.init.zeros_(parameter)
        else:
            network.fc.reset_parameters()
    if backbone is not None:
        head = {f"fc.{name}": value for name, value in network.fc.state_dict().items()}
        network.load_state_dict({**backbone, **head}, strict=True)
    return network


def network_of(tensors: Mapping[str, torch.Tensor]) -> Network:
    """The network of these tensors, which are not copied, in eval mode. Without fc.* among them it has no head."""
    with torch.device("meta"):  # nothing is initialised
        network = Network(len(tensors["fc.bias"]) if "fc.bias" in tensors else None)
    network.load_state_dict({name: value.detach() for name, value in tensors.items()}, strict=True, assign=True)
    return network.eval()


@cache
def backbone_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the backbone, name -> shape."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Network(None).state_dict().items()}


def not_usable(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Why no network can compute with these tensors; None if it can. Names the first that is at fault."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            found = value[~value.isfinite()]
            return f"{name} holds {float(found[0])} ({found.numel()} of {value.numel()} numbers are not finite)"
        if name.endswith("running_var") and (value < 0).any():
            return f"{name} holds {float(value.min()):g}, and a variance cannot be negative"
    return None


@torch.no_grad()
def fold_batchnorm(network: Network, dtype: torch.dtype) -> Network:
    """Fold every BatchNorm into the convolution before it, in place: biased convolutions in `dtype`, and Identity.

    In eval mode the result is the same but for rounding; folding is computed in float64. The tensors that the network
    had are not changed."""
    modules = dict(network.named_modules())
    convolutions = [module for module in modules.values() if isinstance(module, nn.Conv2d)]
    norms = {name: module for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)}
    for convolution, (name, norm) in zip(convolutions, norms.items(), strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = convolution.weight.double() * factor.view(-1, 1, 1, 1)
        bias = norm.bias.double() - norm.running_mean.double() * factor
        convolution.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        convolution.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        network.set_submodule(name, nn.Identity())
    return network
