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

from headstart.data import decode as decode_module
from headstart.data.decode import DIM, SIXTEEN_BIT_MAX, UnreadableImage, decode
from headstart.data.file_kinds import is_transformed, kind_of, raw_kind

ORIENTATION = 0x0112
FILTERS = [entry for entry in warnings.filters if entry[3] is not None and "PIL" in str(entry[3])]
"""Those that the decoder sets; pytest replaces them in each test."""
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
    assert decode_module._reads_heif()  # registers it with Pillow, for writing too
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


def tiff(values: np.ndarray, *, bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """One strip, without compression."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2)
        pixels = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs.tolist())
    else:
        pixels = values.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 12 * 10 + 4, 277: 1}
    tags |= {278: height, 279: len(pixels), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


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
    "I;16 pgm": lambda: b"P5 64 48 65535\n" + np.arange(48 * 64, dtype=">u2").tobytes(),
    "RGB heic": lambda: encoded(smooth(), "HEIF"),
    "RGBA heic": lambda: encoded(Image.fromarray(colours(channels=4)), "HEIF"),
    "RGB avif": lambda: encoded(smooth(), "AVIF"),
    "RGBA avif": lambda: encoded(Image.fromarray(colours(channels=4)), "AVIF"),
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


@pytest.mark.parametrize(("kind", "deep"), [("PNG", np.uint16), ("TIFF", np.uint16)])
def test_sixteen_bits_are_scaled_and_rounded(kind: str, deep: type) -> None:
    values = np.array([[0, 128, 129, 256, 257, 385, 386, 32767, 32768, 65406, 65407, 65535]])
    result = np.asarray(decode(encoded(Image.fromarray(values.astype(deep)), kind)))
    assert result[0, :, 0].tolist() == [round(v * 255 / 65535) for v in values[0].tolist()]


def test_big_endian_sixteen_bits_are_read_as_the_same_numbers() -> None:
    values = np.array([[0, 257, 65535, 4660]], dtype=">u2")
    data = b"P5 4 1 65535\n" + values.tobytes()
    assert np.asarray(decode(data))[0, :, 0].tolist() == [0, 1, 255, 18]


@pytest.mark.parametrize(("bits", "photometric"), [(16, 0), (12, 1), (16, 1)])
def test_a_tiff_looks_as_its_tags_say(bits: int, photometric: int) -> None:
    """12 bits per value, and 0 for white."""
    values = np.array([[0, 1, 2**bits // 2, 2**bits - 1]] * 4)
    data = tiff(values, bits=bits, photometric=photometric)
    expected = [round(v * 255 / (2**bits - 1)) for v in values[0].tolist()]
    found = np.asarray(decode(data))[0, :, 0].tolist()
    assert found == ([255 - v for v in expected] if photometric == 0 else expected)


def test_integers_without_an_agreed_range_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="32-bit"):
        decode(encoded(Image.fromarray(np.full((48, 64), 7, dtype=np.int32)), "TIFF"))
    with pytest.raises(UnreadableImage, match="16-bit signed"):
        decode(tiff(np.full((4, 4), 7), bits=16, photometric=1, sample_format=2))


@pytest.mark.parametrize(("most", "dim"), [(4095, True), (65535, False)])
def test_a_decoded_image_of_sixteen_bits_says_what_part_of_the_range_it_uses(most: int, dim: bool) -> None:
    image = decode(encoded(gray16(np.linspace(0, most, 48 * 64).reshape(48, 64)), "PNG"))
    assert image.info[SIXTEEN_BIT_MAX] == most
    assert (most < DIM) == dim


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
@pytest.mark.parametrize("kind", ["HEIF of a phone", "HEIF with EXIF alone", "AVIF"])
def test_the_orientation_of_heif_and_avif_is_applied_once(kind: str, orientation: int) -> None:
    """A phone writes it twice: as a property of the image, which libheif applies, and in EXIF."""
    tags = exif(orientation)
    upright = np.asarray(decode(encoded(smooth(), kind[:4]))).astype(int)
    as_property = kind == "HEIF of a phone"
    data = encoded(smooth(), kind[:4], exif=tags.tobytes() if as_property else tags)
    if kind != "AVIF":
        assert is_transformed(data) == (as_property and orientation != 1)
    turned = np.asarray(decode(data)).astype(int)
    assert turned.shape == TRANSPOSED[orientation](upright).shape
    assert np.abs(turned - TRANSPOSED[orientation](upright)).mean() < 2
    assert np.abs(np.asarray(smooth()).astype(int) - upright).mean() < 6


def test_an_image_whose_extra_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES["RGB heic"]()
    monkeypatch.setattr(decode_module, "_reads_heif", lambda: False)
    with pytest.raises(UnreadableImage, match=r"pip install 'headstart\[heic\]'") as caught:
        decode(data)
    assert caught.value.kind == "lacks_extra"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
@pytest.mark.parametrize("damage", [b"XX*\0\0\0\0\x08", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\xff\xff", b""])
def test_broken_exif_data_are_ignored_without_a_warning(kind: str, damage: bytes) -> None:
    broken = b"Exif\0\0" + damage
    with warnings.catch_warnings(record=True) as caught:
        warnings.filters[:] = [*FILTERS, *warnings.filters]
        found = np.asarray(decode(encoded(smooth(), kind, exif=broken)))
    assert [str(one.message) for one in caught] == []
    assert np.array_equal(found, np.asarray(decode(encoded(smooth(), kind))))


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
    "text": (lambda: b"this is no picture\n" * 50, "a text"),
    "a web page": (lambda: b"<!DOCTYPE html><html>Not found</html>", "HTML page"),
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
    "zeros": (lambda: bytes(5000), "zero bytes"),
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
    with pytest.raises(UnreadableImage, match="PostScript"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


OTHER_KINDS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n": "git lfs pull",
    b"../.git/annex/objects/Xx/9k/SHA256E-s1--e3.jpg/SHA256E-s1--e3.jpg": "git annex get",
    b"\n <!DOCTYPE HTML>\n<html><title>404</title>": "HTML page",
    b"<html><body>Sign in</body></html>": "HTML page",
    b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>': "SVG",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "XML",
    b'{"error": "not found"}': "JSON",
    b"%PDF-1.7\n": "PDF",
    b"8BPS\0\x01": "Photoshop",
    b"PK\x03\x04\x14": "zip archive",
    b"\x1f\x8b\x08": "compressed",
    b"RIFF\x10\0\0\0AVI LIST": "video",
    b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom": "video",
    b"\0\0\0\x18ftypqt  \0\0\0\0qt  ": "video",
    b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom": "raw file of a camera (CR3)",
    b"II*\0\x10\0\0\0CR\x02\0": "raw file of a camera (CR2)",
    b"FUJIFILMCCD-RAW 0201": "raw file of a camera (RAF)",
    bytes(128) + b"DICM": "DICOM",
    bytes(4096): "zero bytes",
    b"dear diary\n": "a text",
}


@pytest.mark.parametrize("start", OTHER_KINDS, ids=OTHER_KINDS.values())
def test_a_file_that_is_no_image_is_named_by_what_it_is(start: bytes) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode(start)
    assert OTHER_KINDS[start] in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_no_image_is_taken_for_something_else_even_if_it_is_cut_off(name: str) -> None:
    data = FILES[name]()
    assert kind_of(data) is None
    assert kind_of(data[:400]) is None


def test_the_thumbnail_of_a_raw_file_is_not_taken_for_the_image() -> None:
    data = encoded(smooth(), "TIFF", tiffinfo={50706: bytes([1, 4, 0, 0])})
    with pytest.raises(UnreadableImage, match=r"raw file of a camera \(DNG\)"):
        decode(data)
    assert raw_kind({254: 1, 330: 99}) is not None
    assert raw_kind({254: 0, 330: 99, 262: 2}) is None
    assert raw_kind({254: 1}) is None
