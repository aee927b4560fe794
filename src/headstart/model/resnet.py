"""ResNets (He et al. 2016, arXiv:1512.03385) with the operations and the state-dict keys of torchvision.models.resnet.

They need torch alone: importing torchvision takes longer than loading a model file.
"""

import torch
from torch import nn
from torch.nn import functional as F

from headstart.model.network import Network

WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages; a Bottleneck has four times as many outputs."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (n, width_in, h, w) -> (n, width, h / stride, w / stride)."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        # made before the others, so that random numbers are drawn in the order of torchvision
        downsample = _downsample(width_in, width, stride)
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


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 beside a shortcut: (n, width_in, h, w) -> (n, 4 width, h / stride, w / stride).

    As in torchvision, the second one has the stride (Goyal et al. 2017, arXiv:1706.02677)."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        wide = width * self.expansion
        downsample = _downsample(width_in, wide, stride)
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


def _downsample(width_in: int, width: int, stride: int) -> nn.Sequential | None:
    """The shortcut, where it cannot be the input itself."""
    if stride == 1 and width_in == width:
        return None
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))


KINDS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
"""By name: the block, and how many of them each stage has."""


class ResNet(Network):
    """num_classes: None for the backbone alone."""

    def __init__(self, name: str, num_classes: int | None) -> None:
        super().__init__()
        block, depths = KINDS[name]
        width = WIDTHS[0]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, (depth, wider) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
            blocks = [block(width, wider, stride=1 if stage == 1 else 2)]
            width = wider * block.expansion
            blocks += [block(width, wider, stride=1) for _ in range(1, depth)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Identity() if num_classes is None else nn.Linear(width, num_classes)

    def initialise(self) -> None:
        """torchvision's initial weights of the convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) -> (n, d, S / 32, S / 32), the output of the last stage."""
        x: torch.Tensor = self.bn1(self.conv1(pixels))
        # torchvision has ReLU first; values and gradients are the same, and here ReLU sees a quarter of the numbers
        x = F.relu(F.max_pool2d(x, kernel_size=3, stride=2, padding=1), inplace=True)
        for stage in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def pool_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """(n, d, h, w) -> (n, d), the mean of each map."""
        return torch.flatten(F.adaptive_avg_pool2d(maps, (1, 1)), 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.pool_maps(self.maps(pixels)))
        return logits
