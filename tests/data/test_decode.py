"""Bytes of an image file to 8-bit RGB: every mode, orientation, and what is refused."""

import io
import struct
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.data.decode import UnreadableImage, decode

ORIENTATION = 0x0112
TRANSPOSED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def colours(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth() -> Image.Image:
    """Survives JPEG, and no two of its eight orientations are alike."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([3 * x, 4 * y, x + y], axis=-1).astype(np.uint8))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def palette_image() -> Image.Image:
    """Each row begins with colours 0, 1, 2, 3."""
    image = Image.fromarray(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) % 4)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    assert image.mode == "P"
    return image


def gray16(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16))


FILES: dict[str, Callable[[], bytes]] = {
    "RGB png": lambda: encoded(Image.fromarray(colours()), "PNG"),
    "RGB jpeg": lambda: encoded(smooth(), "JPEG"),
    "RGB bmp": lambda: encoded(smooth(), "BMP"),
    "RGB tiff": lambda: encoded(smooth(), "TIFF"),
    "RGB webp": lambda: encoded(smooth(), "WEBP"),
    "RGB ppm": lambda: encoded(smooth(), "PPM"),
    "RGBA png": lambda: encoded(Image.fromarray(colours(channels=4)), "PNG"),
    "RGBA webp": lambda: encoded(Image.fromarray(colours(channels=4)), "WEBP"),
    "LA png": lambda: encoded(smooth().convert("LA"), "PNG"),
    "L png": lambda: encoded(smooth().convert("L"), "PNG"),
    "L jpeg": lambda: encoded(smooth().convert("L"), "JPEG"),
    "L pgm": lambda: encoded(smooth().convert("L"), "PPM"),
    "1 png": lambda: encoded(smooth().convert("1"), "PNG"),
    "1 tiff": lambda: encoded(smooth().convert("1"), "TIFF"),
    "P png": lambda: encoded(palette_image(), "PNG"),
    "P png with a transparent colour": lambda: encoded(palette_image(), "PNG", transparency=2),
    "P gif": lambda: encoded(palette_image(), "GIF"),
    "P gif with a transparent colour": lambda: encoded(palette_image(), "GIF", transparency=1),
    "RGB png with a transparent colour": lambda: encoded(smooth(), "PNG", transparency=(0, 0, 0)),
    "L png with a transparent value": lambda: encoded(smooth().convert("L"), "PNG", transparency=0),
    "1 png with a transparent value": lambda: encoded(smooth().convert("1"), "PNG", transparency=0),
    "CMYK jpeg": lambda: encoded(smooth().convert("CMYK"), "JPEG"),
    "CMYK tiff": lambda: encoded(smooth().convert("CMYK"), "TIFF"),
    "YCbCr tiff": lambda: encoded(smooth().convert("YCbCr"), "TIFF"),
    "LAB tiff": lambda: encoded(smooth().convert("LAB"), "TIFF"),
    "I;16 png": lambda: encoded(gray16(np.arange(48 * 64).reshape(48, 64) * 20), "PNG"),
    "I;16 tiff": lambda: encoded(gray16(np.arange(48 * 64).reshape(48, 64) * 20), "TIFF"),
    "I tiff": lambda: encoded(Image.fromarray(np.arange(48 * 64, dtype=np.int32).reshape(48, 64)), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_mode_becomes_rgb_of_eight_bits(name: str) -> None:
    image = decode(FILES[name]())
    assert (image.mode, image.size, np.asarray(image).dtype) == ("RGB", (64, 48), np.uint8)


@pytest.mark.parametrize("name", FILES)
def test_the_result_no_longer_needs_the_file_and_may_be_drawn_on(name: str) -> None:
    image = decode(FILES[name]())
    image.putpixel((1, 1), (1, 2, 3))
    assert image.getpixel((1, 1)) == (1, 2, 3)


def test_rgb_is_left_as_it_is() -> None:
    pixels = colours()
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(pixels), "PNG"))), pixels)


def test_grayscale_goes_into_all_channels() -> None:
    gray = colours()[..., 0]
    result = np.asarray(decode(encoded(Image.fromarray(gray), "PNG")))
    assert np.array_equal(result, np.repeat(gray[..., None], 3, axis=2))


def test_one_bit_is_black_and_white() -> None:
    bits = smooth().convert("1")
    expected = np.asarray(bits).astype(np.uint8) * 255
    assert np.array_equal(np.asarray(decode(encoded(bits, "PNG")))[..., 0], expected)


def test_a_palette_is_looked_up() -> None:
    result = np.asarray(decode(encoded(palette_image(), "PNG")))
    assert result[0, :4].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_becomes_white(kind: str) -> None:
    result = np.asarray(decode(encoded(palette_image(), kind, transparency=2)))
    assert result[0, :4].tolist() == [[255, 0, 0], [0, 255, 0], [255, 255, 255], [10, 20, 30]]


def test_a_half_transparent_palette_colour_is_mixed_with_white() -> None:
    result = np.asarray(decode(encoded(palette_image(), "PNG", transparency=bytes([255, 0, 51, 255]))))
    assert result[0, :4].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 255], [10, 20, 30]]


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_a_colour_declared_transparent_becomes_white(mode: str) -> None:
    black = {"RGB": (0, 0, 0), "L": 0, "1": 0}[mode]
    image = Image.new(mode, (64, 48), black)
    assert np.asarray(decode(encoded(image, "PNG", transparency=black))).min() == 255


def test_alpha_is_laid_over_white_exactly() -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51], [0, 0, 0, 102]]], dtype=np.uint8)
    result = np.asarray(decode(encoded(Image.fromarray(pixels), "PNG")))
    assert result.tolist() == [[[10, 20, 30], [255, 255, 255], [204, 224, 255], [153, 153, 153]]]


def test_the_alpha_of_grayscale_is_laid_over_white_exactly() -> None:
    pixels = np.array([[[10, 255], [10, 0], [0, 51]]], dtype=np.uint8)
    result = np.asarray(decode(encoded(Image.fromarray(pixels), "PNG")))
    assert result[..., 0].tolist() == [[10, 255, 204]]


def test_cmyk_is_converted_as_pillow_does() -> None:
    data = encoded(smooth().convert("CMYK"), "JPEG")
    assert np.array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(("kind", "deep"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_sixteen_bits_are_scaled_and_rounded(kind: str, deep: type) -> None:
    values = np.array([[0, 128, 129, 256, 257, 385, 386, 32767, 32768, 65406, 65407, 65535]])
    result = np.asarray(decode(encoded(Image.fromarray(values.astype(deep)), kind)))
    assert result[0, :, 0].tolist() == [round(v * 255 / 65535) for v in values[0].tolist()]


def test_big_endian_sixteen_bits_are_read_as_the_same_numbers() -> None:
    values = np.array([[0, 257, 65535, 4660]], dtype=">u2")
    data = b"P5 4 1 65535\n" + values.tobytes()
    assert np.asarray(decode(data))[0, :, 0].tolist() == [0, 1, 255, 18]


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_integers_beyond_sixteen_bits_are_refused(value: int) -> None:
    image = Image.fromarray(np.full((48, 64), value, dtype=np.int32))
    with pytest.raises(UnreadableImage, match=r"0\.\.65535"):
        decode(encoded(image, "TIFF"))


def test_floats_are_refused_with_the_reason() -> None:
    image = Image.fromarray(np.full((48, 64), 0.5, dtype=np.float32))
    with pytest.raises(UnreadableImage, match="float"):
        decode(encoded(image, "TIFF"))


@pytest.mark.parametrize("orientation", TRANSPOSED)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_the_orientation_is_applied(orientation: int, mode: str) -> None:
    image = smooth().convert(mode)
    upright = np.asarray(decode(encoded(image, "PNG")))
    turned = np.asarray(decode(encoded(image, "PNG", exif=exif(orientation))))
    assert np.array_equal(turned, TRANSPOSED[orientation](upright))


@pytest.mark.parametrize("orientation", TRANSPOSED)
def test_the_orientation_of_a_jpeg_is_applied(orientation: int) -> None:
    upright = np.asarray(decode(encoded(smooth(), "JPEG")))
    turned = np.asarray(decode(encoded(smooth(), "JPEG", exif=exif(orientation))))
    assert np.array_equal(turned, TRANSPOSED[orientation](upright))


@pytest.mark.parametrize("orientation", TRANSPOSED)
def test_the_orientation_of_sixteen_bits_is_applied(orientation: int) -> None:
    image = gray16(np.arange(48 * 64).reshape(48, 64) * 20)
    upright = np.asarray(decode(encoded(image, "PNG")))
    turned = np.asarray(decode(encoded(image, "PNG", exif=exif(orientation))))
    assert np.array_equal(turned, TRANSPOSED[orientation](upright))


def test_the_orientation_is_forgotten_once_it_is_applied() -> None:
    assert ORIENTATION not in decode(encoded(smooth(), "JPEG", exif=exif(6))).getexif()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_ignored(orientation: int) -> None:
    upright = decode(encoded(smooth(), "JPEG"))
    assert decode(encoded(smooth(), "JPEG", exif=exif(orientation))).tobytes() == upright.tobytes()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in [(200, 0, 0), (0, 200, 0), (0, 0, 200)]]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert np.unique(np.asarray(decode(data)).reshape(-1, 3), axis=0).tolist() == [[200, 0, 0]]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty file"),
    "text": (lambda: b"this is not an image\n" * 50, "not an image"),
    "a web page": (lambda: b"<!DOCTYPE html><html>Not found</html>", "not an image"),
    "the start of a jpeg": (lambda: encoded(smooth(), "JPEG")[:20], "."),
    "half a jpeg": (lambda: encoded(Image.fromarray(colours()), "JPEG")[:1500], "truncated"),
    "a jpeg without its last bytes": (lambda: encoded(Image.fromarray(colours()), "JPEG")[:-64], "truncated"),
    "half a png": (lambda: encoded(Image.fromarray(colours()), "PNG")[:4000], "."),
    "half a bmp": (lambda: encoded(smooth(), "BMP")[:4000], "truncated"),
    "half a tiff": (lambda: encoded(smooth(), "TIFF")[:4000], "."),
    "half a webp": (lambda: encoded(Image.fromarray(colours()), "WEBP")[:1000], "."),
    "a png header and nothing else": (lambda: b"\x89PNG\r\n\x1a\n", "."),
    "a damaged png": (
        lambda: (lambda data: data[:1000] + b"\x00" * 500 + data[1500:])(encoded(Image.fromarray(colours()), "PNG")),
        ".",
    ),
    "zeros": (lambda: bytes(5000), "not an image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_incomplete_image_is_refused_with_a_reason_in_one_line(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(make())
    message = str(caught.value)
    assert message
    assert "\n" not in message


@pytest.mark.parametrize("limit", [1000, 2000], ids=["far beyond", "just beyond"])
def test_more_pixels_than_pillow_allows_are_refused(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(smooth(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImage, match="pixels"):
        decode(data)


def test_a_small_file_that_claims_to_be_huge_is_refused() -> None:
    data = bytearray(encoded(smooth(), "BMP"))
    data[18:26] = struct.pack("<ii", 30_000, 30_000)
    with pytest.raises(UnreadableImage, match="pixels"):
        decode(bytes(data))


def test_decoding_in_threads_leaves_the_warning_filters_as_they_were() -> None:
    # catch_warnings swaps a list of the whole process, and the manifest decodes in threads. Fails (a race): a thread
    # that entered it last restores the filters of one that entered before it
    data = [encoded(Image.fromarray(colours(300, 400)), "JPEG")] * 200
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(3):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(decode, data))
        after = list(warnings.filters)
    finally:
        sys.setswitchinterval(interval)
        warnings.filters[:] = before
    assert after == before


def test_a_postscript_file_is_refused_and_starts_no_program() -> None:
    with pytest.raises(UnreadableImage, match="not an image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
