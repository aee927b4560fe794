"""The choice of the network: everything outside network.py that depends on it is here. Knows no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backbone:
    """name: in model files, and as torchvision and timm name it; title: for people.

    depths, widths: blocks and channels of each stage. features: width of the pooled features that the head sees, which
    are the means of the maps of the last stage (the layer of Grad-CAM). stride: pixels of the image along the side of a
    cell of those maps. min_image_size: side of the smallest image, pixels."""

    name: str
    title: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    features: int
    stride: int
    min_image_size: int


RESNET18 = Backbone(
    name="resnet18",
    title="ResNet-18",
    depths=(2, 2, 2, 2),
    widths=(64, 128, 256, 512),
    features=512,
    stride=32,
    min_image_size=32,
)
FEATURES = RESNET18.features
