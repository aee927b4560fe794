"""The backbones by name, with the preprocessing that they were trained with. Those of timm are described in
model/timm_network.py."""

from dataclasses import dataclass

from headstart.errors import InputError
from headstart.wording import nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TIMM = "timm:"
"""Before the name of a model of timm."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """name: as `model.backbone` has it; title: for people; timm: its name in timm, whose keys its tensors have (those
    of the ResNets are torchvision's, too). head: name of the linear layer that is the head; features: its inputs.
    plain: whether it is known to consist of pairs of a convolution and a BatchNorm, and a mean of the last maps.

    Preprocessing: image_size and min_image_size, pixels; crop_share: image_size divided by the short side before the
    crop; interpolation, mean, std as in `Preprocess`. fixed_size: whether it computes images of `image_size` only.
    license: of the ImageNet weights, as the Hub names it; base_model: their repository on the Hub."""

    name: str
    title: str
    timm: str
    head: str
    features: int
    image_size: int = 224
    min_image_size: int = 32
    crop_share: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fixed_size: bool = False
    plain: bool = False
    license: str | None = None
    base_model: str | None = None

    @property
    def of_torchvision(self) -> bool:
        """Whether it is also a model of torchvision, with the same tensors."""
        return self.name.startswith("resnet")

    def sizes(self, image_size: int | None, resize_size: int | None) -> tuple[int, int]:
        """image_size and resize_size, pixels, as configured or by default. Raises InputError for sizes that the network
        cannot compute, or that do not fit each other."""
        side = self.image_size if image_size is None else image_size
        if side < self.min_image_size:
            raise InputError(
                f"data.image_size is {side}; it must be at least {self.min_image_size} pixels for {self.title}"
            )
        if self.fixed_size and side != self.image_size:
            raise InputError(
                f"data.image_size is {side}, and {self.title} computes images of {self.image_size} pixels only; leave "
                "the key out"
            )
        if resize_size is None:
            exact = side / self.crop_share  # timm rounds down, torchvision has 256 for 224
            return side, round(exact) if self.of_torchvision else int(exact + 1e-9)
        if resize_size < side:
            raise InputError(
                f"data.resize_size {resize_size} is smaller than data.image_size {side}; use null or at least that size"
            )
        return side, resize_size


def _resnet(depth: int, features: int) -> Backbone:
    return Backbone(
        name=f"resnet{depth}",
        title=f"ResNet-{depth}",
        timm=f"resnet{depth}",
        head="fc",
        features=features,
        plain=True,
        license="bsd-3-clause",
        base_model=f"timm/resnet{depth}.tv_in1k",
    )


def _lite(number: int, image_size: int, crop_share: float) -> Backbone:
    return Backbone(
        name=f"lite{number}",
        title=f"EfficientNet-Lite{number}",
        timm=f"tf_efficientnet_lite{number}",
        head="classifier",
        features=1280,
        image_size=image_size,
        crop_share=crop_share,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        plain=True,
        license="apache-2.0",
        base_model=f"timm/tf_efficientnet_lite{number}.in1k",
    )


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        *(_resnet(18, 512), _resnet(34, 512), _resnet(50, 2048)),
        *(_lite(0, 224, 0.875), _lite(1, 240, 0.882), _lite(2, 260, 0.890)),
    )
}
RESNET18 = BACKBONES["resnet18"]


def check_name(name: str) -> None:
    """Raise InputError for a name that is neither here nor one of timm."""
    if name not in BACKBONES and not name.startswith(TIMM):
        ours = {backbone.timm: backbone.name for backbone in BACKBONES.values()}
        hint = f"; did you mean {ours[name]}?" if name in ours else nearest(name, [*BACKBONES, TIMM])
        hint = hint or f"; use one of {', '.join(BACKBONES)}, or {TIMM}NAME"
        raise InputError(f"model.backbone is {name!r}, which is not a backbone{hint}")
