"""What `predict` accepts as an image, and how each becomes the RGB image that an image file of it would.

| given                 | accepted                                                                                   |
|-----------------------|--------------------------------------------------------------------------------------------|
| str, Path             | the name of an image file                                                                  |
| bytes                 | the content of an image file                                                               |
| PIL.Image             | every mode the decoder knows; EXIF orientation is applied                                  |
| numpy, one image      | (H, W) or (H, W, 1) gray, (H, W, 3) RGB, (H, W, 4) RGBA                                    |
| torch, one image      | (1, H, W) gray, (3, H, W) RGB, (4, H, W) RGBA                                              |
| numpy, torch, several | the same with n in front; gray in numpy as (n, H, W, 1): (n, H, W) could be BGR planes     |
| dtype of both         | uint8, 0 to 255; uint16, 0 to 65535, gray only; floating point, 0 to 1, rounded to 8 bits  |

Colours are RGB, never BGR. The decoder's policy (data/decode.py) applies: alpha is composited over white, 16 bits
become 8. Images must not be resized or normalised beforehand: both happen here, as the model file specifies."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from headstart.data.decode import UnreadableImage, rgb_of
from headstart.data.transforms import Preprocess
from headstart.errors import InputError
from headstart.files import read_regular
from headstart.wording import one_line

One: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray | torch.Tensor"
"""One image, or several in one array."""

_SHAPES = {
    "an array": "(H, W) gray, (H, W, 3) RGB or (H, W, 4) RGBA, or several of them as (n, H, W, 1), (n, H, W, 3) or "
    "(n, H, W, 4)",
    "a tensor": "(1, H, W) gray, (3, H, W) RGB or (4, H, W) RGBA, or several of them with n in front",
}


def each(images: "One | Iterable[One]") -> Iterator[One]:
    """The single images of one image, of several in one array, or of an iterable of either.

    Raises InputError for anything that is not an image."""
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray | torch.Tensor):
        images = [images]
    elif not isinstance(images, Iterable):
        raise InputError(
            f"images is of type {type(images).__name__}; give paths, bytes, PIL images, arrays or tensors, or a list "
            "of them"
        )
    for place, image in enumerate(images):
        if isinstance(image, np.ndarray | torch.Tensor):
            yield from _arrays_of(image, place)
        elif isinstance(image, str | Path | bytes | Image.Image):
            yield image
        else:
            raise InputError(
                f"image {place} is of type {type(image).__name__}; give paths, bytes, PIL images, arrays or tensors"
            )


def rgb_image(image: One, spec: Preprocess) -> Image.Image:
    """An image that `each` yields, as RGB with 8 bits. Raises UnreadableImage with the reason, and OSError."""
    if isinstance(image, str | Path):
        if "\0" in str(image):
            raise UnreadableImage("the name contains a NUL")
        return spec.decode(read_regular(Path(image)))
    if isinstance(image, bytes):
        return spec.decode(image)
    if isinstance(image, np.ndarray):
        return spec.resizable(rgb_of(Image.fromarray(image)))
    assert isinstance(image, Image.Image)
    try:
        if image.width < 1 or image.height < 1:
            raise UnreadableImage("an image without pixels")
        rgb = rgb_of(image.copy())
    except UnreadableImage:
        raise
    except Exception as error:  # a lazily opened file is read only here, and Pillow's plugins raise any type
        raise UnreadableImage(one_line(error)) from None
    return spec.resizable(rgb)


def _arrays_of(given: "np.ndarray | torch.Tensor", place: int) -> Iterator[np.ndarray]:
    """uint8 (H, W), (H, W, 3) or (H, W, 4), or uint16 (H, W), for each image in it."""
    if isinstance(given, torch.Tensor):
        kind, shape = "a tensor", tuple(given.shape)
        values = _numpy_of(given, place)
        if values.ndim == 3:
            values = values[None]
        fits = values.ndim == 4 and values.shape[1] in (1, 3, 4)
        values = values.transpose(0, 2, 3, 1) if fits else values
    else:
        kind, shape = "an array", given.shape
        given = given.astype(given.dtype.newbyteorder("="), copy=False)
        values = given[None] if given.ndim == 2 or (given.ndim == 3 and given.shape[2] in (1, 3, 4)) else given
        values = values[..., None] if values.ndim == 3 and given.ndim == 2 else values
        fits = values.ndim == 4 and values.shape[3] in (1, 3, 4)
    if not fits or 0 in values.shape[1:]:
        raise InputError(f"image {place} is {kind} of shape {shape}; it must be {_SHAPES[kind]}")
    values = _eight_bits(values, place, kind)
    for pixels in values:
        yield np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _numpy_of(given: torch.Tensor, place: int) -> np.ndarray:
    if given.layout != torch.strided or given.is_meta or given.is_quantized:
        how = "a quantised" if given.is_quantized else "an empty (meta)" if given.is_meta else "a sparse"
        raise InputError(f"image {place} is {how} tensor; give a dense one with its values")
    several = given.detach().cpu().resolve_conj().resolve_neg()
    if several.is_floating_point() and several.dtype not in (torch.float16, torch.float32, torch.float64):
        several = several.float()  # numpy has neither bfloat16 nor the kinds of 8 bits
    try:
        return several.numpy()
    except TypeError:
        raise InputError(f"image {place} is a tensor of {several.dtype}, which has no pixels; give uint8") from None


def _eight_bits(values: np.ndarray, place: int, kind: str) -> np.ndarray:
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and values.shape[3] == 1):
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(
            f"image {place} is {kind} of {values.dtype}; it must be uint8 (0 to 255), uint16 (0 to 65535, gray) or "
            "floating point (0 to 1)"
        )
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):  # also for NaN
        raise InputError(
            f"image {place} is {kind} of {values.dtype} from {low:.4g} to {high:.4g}; floating point must lie in 0 to "
            "1, neither in 0 to 255 nor normalised"
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
