"""Files with far more around their pixels than images have: refused before a reader takes minutes for them."""

import io
import struct
import zlib

import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from headstart.data.decode import UnreadableImage, decode
from headstart.data.structure import MOST_COMMENTS, MOST_EXIF_SEGMENTS, MOST_PARTS, MOST_SCANS, excess_in


def encoded(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 10), (90, 120, 30)).save(out, kind, **options)
    return out.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(parts: bytes) -> bytes:
    return b"\xff\xd8" + parts + encoded("JPEG")[2:]


def png_with(count: int) -> bytes:
    data = encoded("PNG")
    chunk = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    return data[:33] + chunk * count + data[33:]  # after the header


def gif_with(count: int) -> bytes:
    data = encoded("GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + b"\x21\xfe\x01a\0" * count + data[start:]


def ppm_with(count: int) -> bytes:
    return b"P3\n20 10\n255\n" + b"#\n" * count + b"90 120 30\n" * 200


def tiff_with(count: int) -> bytes:
    """So many private tags that name the same bytes, which are as long as all that the file holds besides."""
    payload, start = b"x" * 1_000_000, 8
    entries = [(256, 3, 1, 20), (257, 3, 1, 10), (262, 3, 1, 1), (258, 3, 1, 8), (273, 4, 1, 8), (279, 4, 1, 200)]
    entries += [(50000 + number, 7, len(payload), start) for number in range(count)]
    table = b"".join(struct.pack("<HHI", *entry[:3]) + struct.pack("<I", entry[3]) for entry in sorted(entries))
    end = start + len(payload)
    return b"II*\0" + struct.pack("<I", end) + payload + struct.pack("<H", len(entries)) + table + b"\0\0\0\0"


EXCESSIVE = {
    "jpeg, segments": lambda: jpeg_with(segment(0xE5, b"") * (MOST_PARTS + 1)),
    "jpeg, exif": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + b"a" * 12) * (MOST_EXIF_SEGMENTS + 1)),
    "jpeg, junk between": lambda: jpeg_with(b"\0".join([segment(0xE1, b"Exif\0\0" + b"a" * 12)] * 100)),
    "jpeg, scans": lambda: jpeg_with(b"").replace(b"\xff\xd9", b"\xff\xda" * (MOST_SCANS + 1) + b"\xff\xd9"),
    "jpeg, padding": lambda: jpeg_with(b"\xff" * (MOST_PARTS + 1)),
    "png, chunks": lambda: png_with(MOST_PARTS + 1),
    "gif, comments": lambda: gif_with(MOST_PARTS + 1),
    "ppm, comments": lambda: ppm_with(MOST_COMMENTS + 1),
    "ppm, header": lambda: b"P6\n#" + b"a" * 70_000 + b"\n20 10\n255\n" + bytes(600),
    "tiff, tags": lambda: tiff_with(20),
}


@pytest.mark.filterwarnings("ignore:Tag data larger than file")  # newer versions of Pillow look at this one themselves
@pytest.mark.parametrize("name", EXCESSIVE)
def test_what_no_image_has_is_refused_before_it_is_decoded(name: str) -> None:
    data = EXCESSIVE[name]()
    assert Image.open(io.BytesIO(data)).size == (20, 10)  # a small file of this kind would be read
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    assert caught.value.kind == "excessive"


@pytest.mark.parametrize("value", [10, 32, 35, 255])
@pytest.mark.parametrize("kind", ["L", "RGB"])
def test_binary_pixels_are_not_taken_for_a_header(value: int, kind: str) -> None:
    out = io.BytesIO()
    Image.new(kind, (300, 300), value if kind == "L" else (value,) * 3).save(out, "PPM")
    assert excess_in(out.getvalue()) is None


def test_what_follows_the_end_of_an_image_does_not_count() -> None:
    """Such as the film of a motion photograph."""
    rest = b"\xff\xda\0\0" * 100_000
    for kind in ("PNG", "JPEG"):
        data = encoded(kind) + bytes(1_000_000) + rest
        assert excess_in(data) is None
        assert decode(data).size == (20, 10)


def test_files_with_much_that_is_usual_are_decoded() -> None:
    tags = ImageFileDirectory_v2()
    tags[270] = "x" * 100_000
    usual = [
        jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(6)) + segment(0xE2, b"ICC_PROFILE\0\1\1") * 255),
        jpeg_with(segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"a" * 1000) * 1500),
        png_with(1000),
        gif_with(1000),
        ppm_with(100),
        tiff_with(0),
        encoded("TIFF", tiffinfo=tags),
        *(encoded(kind) for kind in ("BMP", "WEBP", "PPM", "JPEG2000", "TGA")),
    ]
    for data in usual:
        assert excess_in(data) is None
        assert decode(data).size == (20, 10)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "PPM", "TIFF"])
def test_a_cut_file_is_left_to_the_decoder(kind: str) -> None:
    data = encoded(kind)
    assert all(excess_in(data[:length]) is None for length in range(len(data)))
