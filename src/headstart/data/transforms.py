"""From an RGB image to the tensor that the network receives. The preprocessing is stored in the model file."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from headstart.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from headstart.config import DataConfig
from headstart.data.decode import DECODER, UnreadableImage, decode
from headstart.data.pixel_cache import NO_CACHE, CacheLimit, SharedPixels
from headstart.errors import InputError

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
"""By `Preprocess.interpolation`."""


class Transform:
    """From a file and a seed to uint8 (3, S, S), in two steps after decoding: `prepare` depends on the image alone,
    `vary` also on the seed. Prepared images may be kept in memory, so that no image is decoded twice."""

    def __init__(
        self,
        prepare: Callable[[Image.Image], torch.Tensor],
        vary: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        *,
        decode: Callable[[bytes], Image.Image],
        image_size: int,
        cache_limit: CacheLimit = NO_CACHE,
    ) -> None:
        """prepare: RGB image -> uint8 (3, H, W); vary: that and the seed -> uint8 (3, S, S), None if nothing is random;
        decode: file -> RGB image; image_size: S; cache_limit: how much may be kept."""
        self.decode, self.prepare, self.vary, self.image_size = decode, prepare, vary, image_size
        self._kept = SharedPixels(cache_limit)

    def __call__(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        return self._finish(self.prepare(image), seed)

    def of(self, content: str, seed: int, load: Callable[[], Image.Image]) -> torch.Tensor:
        """The transformed image with this sha256; `load` is called if its prepared form is not in memory."""
        return self._finish(self.prepared(content, load), seed)

    def prepared(self, content: str, load: Callable[[], Image.Image]) -> torch.Tensor:
        """The result of `prepare`, uint8 (3, H, W); must not be written to."""
        kept = self._kept.get(content)
        return self.keep(content, load()) if kept is None else kept

    def keep(self, content: str, image: Image.Image) -> torch.Tensor:
        """Prepare, and keep the result unless the limit is reached."""
        prepared = self.prepare(image)
        self._kept.put(content, prepared)
        return prepared

    def expect(self, contents: Iterable[str]) -> None:
        """Images with these sha256 will be used: processes that are forked after this share what each of them keeps."""
        self._kept.expect(contents)

    def _finish(self, prepared: torch.Tensor, seed: int) -> torch.Tensor:
        return prepared if self.vary is None else self.vary(prepared, seed)


@dataclass(frozen=True)
class PixelCache:
    """The transforms whose memory the scan fills with each image that it decodes, so that nothing is decoded again."""

    train: Sequence[Transform]
    val: Sequence[Transform]

    def add(self, split: str | None, content: str, image: Image.Image) -> None:
        """split: None before the images are split; content: the sha256. Called in threads."""
        for transform in self.val if split == "val" else self.train:
            transform.keep(content, image)


@dataclass(frozen=True)
class Preprocess:
    """Everything between a file and the network in evaluation and prediction.

    Decode by `decoder`, a JPEG file at 1/2, 1/4 or 1/8 of its size as long as no side falls below `jpeg_min_side` px;
    resize the short side to `resize_size` px with `interpolation`; crop the central `image_size` square; scale to
    [0, 1]; subtract `mean` and divide by `std` per channel. `train_short_side` says what training did, and does not
    change a prediction: larger images were reduced to a short side of so many px before the random crop.
    """

    image_size: int
    resize_size: int
    interpolation: str = "bilinear"
    antialias: bool = True
    crop: str = "center"
    decoder: str = DECODER
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    jpeg_min_side: int | None = None
    train_short_side: int | None = dataclasses.field(default=None, compare=False)

    @staticmethod
    def of(data: DataConfig, backbone: Backbone) -> "Preprocess":
        """As configured, otherwise as the backbone was trained. Raises InputError for sizes that do not fit it."""
        image_size, resize_size = backbone.sizes(data.image_size, data.resize_size)
        # twice the final size of the whole image and of the smallest crop, so that the resampling decides the pixels
        min_side = math.ceil(2 * resize_size / math.sqrt(data.min_crop_scale)) if data.jpeg == "scaled" else None
        return Preprocess(
            image_size=image_size,
            resize_size=resize_size,
            interpolation=backbone.interpolation,
            mean=backbone.mean,
            std=backbone.std,
            jpeg_min_side=min_side,
        )

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Preprocess":
        """Raises InputError for preprocessing that this version cannot reproduce exactly."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            spec = Preprocess(**fields)
        except TypeError as error:
            raise InputError(
                f"the model file has preprocessing of another version ({error}); install the version that wrote it"
            ) from None
        reference = Preprocess(
            spec.image_size,
            spec.resize_size,
            interpolation=spec.interpolation,
            mean=spec.mean,
            std=spec.std,
            jpeg_min_side=spec.jpeg_min_side,
            train_short_side=spec.train_short_side,
        )
        if spec != reference or spec.interpolation not in RESAMPLING:
            raise InputError(
                f"this version does not support the preprocessing of the model file ({spec}); install the version that "
                "wrote it"
            )
        return spec

    def to_json(self) -> dict[str, Any]:
        optional = ("jpeg_min_side", "train_short_side")
        return {name: v for name, v in dataclasses.asdict(self).items() if v is not None or name not in optional}

    def decode(self, data: bytes) -> Image.Image:
        """A file -> an RGB image that can be resized. Raises UnreadableImage with the reason."""
        return self.resizable(decode(data, jpeg_min_side=self.jpeg_min_side))

    def resizable(self, rgb: Image.Image) -> Image.Image:
        """The image itself. Raises UnreadableImage if it would be huge with a short side of `resize_size`."""
        if Image.MAX_IMAGE_PIXELS is not None and self.resized_pixels(rgb.size) > Image.MAX_IMAGE_PIXELS:
            raise UnreadableImage(
                f"{rgb.width} x {rgb.height} pixels are too long and thin to be resized to a short side of "
                f"{self.resize_size}",
                kind="too_large",
            )
        return rgb

    def resized_pixels(self, size: tuple[int, int]) -> int:
        """Number of pixels of an image of this width and height, before the crop."""
        short, long = sorted(size)
        return self.resize_size**2 * long // short

    def eval_transform(self, *, cache_limit: CacheLimit = NO_CACHE) -> Transform:
        """`resize_and_crop` as a Transform."""
        return Transform(self.resize_and_crop, decode=self.decode, image_size=self.image_size, cache_limit=cache_limit)

    def resize_and_crop(self, image: Image.Image) -> torch.Tensor:
        """uint8 (3, S, S): the same bytes as torchvision's Resize, CenterCrop and PILToTensor, without importing it."""
        width, height = image.size
        short, long = min(width, height), max(width, height)
        scaled = int(self.resize_size * long / short)
        width, height = (self.resize_size, scaled) if width <= height else (scaled, self.resize_size)
        resized = image.resize((width, height), RESAMPLING[self.interpolation])
        left, top = round((width - self.image_size) / 2), round((height - self.image_size) / 2)
        square = resized.crop((left, top, left + self.image_size, top + self.image_size))
        return _as_tensor(square)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, S, S) -> float32, on the device where the pixels are; the memory layout is kept."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return pixels.float().div_(255).sub_(mean).div_(std)


def train_short_side(data: DataConfig, spec: Preprocess) -> int | None:
    """The short side, in px, to which training reduces larger images before a random crop: what the smallest crop needs
    to be as large as the image of an evaluation. None without random crops.

    So a decoded photograph takes the same memory, whatever its size, and the result does not depend on whether there
    was memory to keep it (the presizing of fastai, the maximum resolution of FFCV)."""
    return math.ceil(spec.resize_size / math.sqrt(data.min_crop_scale)) if data.min_crop_scale < 1 else None


def train_transform(data: DataConfig, spec: Preprocess, *, cache_limit: CacheLimit = NO_CACHE) -> Transform:
    """Random resized crop (Szegedy et al. 2015, torchvision's) of the image with `train_short_side`, and flips as
    configured; without any of them the same pixels as in evaluation."""
    from torchvision.transforms import v2

    steps: list[Any] = []
    if data.min_crop_scale < 1:
        steps.append(
            v2.RandomResizedCrop(
                spec.image_size,
                scale=(data.min_crop_scale, 1.0),
                interpolation=v2.InterpolationMode(spec.interpolation),
                antialias=True,
            )
        )
    if data.hflip:
        steps.append(v2.RandomHorizontalFlip())
    if data.vflip:
        steps.append(v2.RandomVerticalFlip())
    side = train_short_side(data, spec)
    prepare = spec.resize_and_crop if side is None else partial(_reduced, side=side, interpolation=spec.interpolation)
    vary = partial(_seeded, v2.Compose(steps)) if steps else None
    return Transform(prepare, vary, decode=spec.decode, image_size=spec.image_size, cache_limit=cache_limit)


def _reduced(image: Image.Image, *, side: int, interpolation: str) -> torch.Tensor:
    """uint8 (3, H, W): the image itself, or reduced to a short side of `side` px if that is larger."""
    if (short := min(image.size)) > side:
        width, height = (max(side, round(length * side / short)) for length in image.size)
        image = image.resize((width, height), RESAMPLING[interpolation], reducing_gap=2.0)
    return _as_tensor(image)


def _as_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (3, H, W) in channels-last memory: torch crops and resizes it three times as fast as Pillow."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _seeded(transform: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """A torchvision transform as a function of its seed; the global random state does not change."""
    before = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        return transform(pixels)
    finally:
        torch.random.set_rng_state(before)
