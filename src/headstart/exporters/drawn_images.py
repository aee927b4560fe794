"""Image files of odd sizes and modes, drawn in code, on which an exported model is compared with `predict`."""

import io
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from PIL import Image

NUM_DRAWN = 52

# width, height: one pixel, one row, one column, halves that round either way, far smaller and far larger than the input
# of the network
_SIZES = (
    *((1, 1), (2, 2), (1, 90), (90, 1), (3, 400), (400, 3), (700, 9), (9, 700), (31, 33), (64, 48), (48, 64)),
    *((97, 61), (127, 255), (224, 224), (256, 256), (255, 257), (257, 255), (333, 251), (251, 337), (640, 427)),
    *((427, 641), (1200, 800)),
)


@cache
def drawn_files() -> tuple[tuple[str, bytes], ...]:
    """(name, content) of NUM_DRAWN files, always the same: odd sizes, then one of each mode and way of storing."""
    return tuple(_draw())


def _draw() -> Iterator[tuple[str, bytes]]:
    for number, (width, height) in enumerate(_SIZES):
        yield f"size_{width}x{height}.png", _encoded(_scene(number, width, height), "PNG")
    for number, (name, draw) in enumerate(_MODES.items(), start=len(_SIZES)):
        yield name, draw(_scene(number, 150 + 7 * (number % 11), 110 + 9 * (number % 7)))


def _scene(number: int, width: int, height: int) -> Image.Image:
    """RGB: coloured ground with a slope, waves of every scale, edges and grain, so that a wrong filter, a shifted crop
    and swapped channels all show."""
    rng = np.random.default_rng([11, number])
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    pixels = np.zeros((height, width, 3))
    for channel in range(3):
        value = rng.uniform(40, 200) + rng.normal(0, 40) * x / width + rng.normal(0, 40) * y / height
        for wavelength in (2.5, 7.0, 23.0, 80.0):
            along, across = rng.normal(0, 1, 2)
            value = value + rng.uniform(5, 25) * np.sin((along * x + across * y) * 2 * np.pi / wavelength)
        pixels[..., channel] = value
    for _ in range(4):
        (left, top), (w, h) = rng.uniform(0, 1, 2), rng.uniform(0.1, 0.5, 2)
        inside = (abs(x / width - left) < w / 2) & (abs(y / height - top) < h / 2)
        pixels[inside] = rng.uniform(0, 255, 3)
    pixels += rng.normal(0, 8, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _turned(orientation: int) -> Callable[[Image.Image], bytes]:
    """A JPEG file whose EXIF says that it lies on its side, or is mirrored."""

    def draw(image: Image.Image) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return _encoded(image, "JPEG", quality=92, exif=exif)

    return draw


def _with_alpha(image: Image.Image) -> Image.Image:
    """Opaque to the left, glass to the right, a hole in the middle."""
    width, height = image.size
    y, x = np.mgrid[0:height, 0:width]
    alpha = 255 - 255 * x // width
    alpha[(abs(x - width / 2) < width / 6) & (abs(y - height / 2) < height / 6)] = 0
    result = image.convert("RGBA")
    result.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return result


def _sixteen_bits(image: Image.Image) -> Image.Image:
    gray = np.asarray(image.convert("L")).astype(np.uint16)
    return Image.fromarray(gray * 257 - gray // 3)


def _animated(image: Image.Image) -> bytes:
    second = Image.new("RGB", image.size, (200, 30, 30))
    return _encoded(image.quantize(64), "GIF", save_all=True, append_images=[second.quantize(64)])


_MODES: dict[str, Callable[[Image.Image], bytes]] = {
    "gray.png": lambda image: _encoded(image.convert("L"), "PNG"),
    "gray.jpg": lambda image: _encoded(image.convert("L"), "JPEG", quality=90),
    "one_bit.png": lambda image: _encoded(image.convert("1"), "PNG"),
    "palette.png": lambda image: _encoded(image.quantize(32), "PNG"),
    "palette_transparent.png": lambda image: _encoded(image.quantize(16), "PNG", transparency=3),
    "palette.gif": lambda image: _encoded(image.quantize(128), "GIF"),
    "animated.gif": _animated,
    "rgba.png": lambda image: _encoded(_with_alpha(image), "PNG"),
    "gray_alpha.png": lambda image: _encoded(_with_alpha(image).convert("LA"), "PNG"),
    "colour_key.png": lambda image: _encoded(image, "PNG", transparency=image.getpixel((0, 0))),
    "sixteen_bits.png": lambda image: _encoded(_sixteen_bits(image), "PNG"),
    "sixteen_bits.tif": lambda image: _encoded(_sixteen_bits(image), "TIFF"),
    "cmyk.jpg": lambda image: _encoded(image.convert("CMYK"), "JPEG", quality=92),
    "cmyk.tif": lambda image: _encoded(image.convert("CMYK"), "TIFF"),
    "lab.tif": lambda image: _encoded(image.convert("LAB"), "TIFF"),
    "small_chroma.jpg": lambda image: _encoded(image, "JPEG", quality=60, subsampling=2),
    "full_chroma.jpg": lambda image: _encoded(image, "JPEG", quality=95, subsampling=0),
    "progressive.jpg": lambda image: _encoded(image, "JPEG", quality=85, progressive=True),
    "lossy.webp": lambda image: _encoded(image, "WEBP", quality=80),
    "alpha.webp": lambda image: _encoded(_with_alpha(image), "WEBP", lossless=True),
    "compressed.tif": lambda image: _encoded(image, "TIFF", compression="tiff_lzw"),
    "plain.bmp": lambda image: _encoded(image, "BMP"),
    "plain.ppm": lambda image: _encoded(image, "PPM"),
    **{f"exif_{orientation}.jpg": _turned(orientation) for orientation in range(2, 9)},
}
