"""The one decoder: bytes of an image file to 8-bit RGB, for training, evaluation and prediction alike.

Policy, named by DECODER in every model file:
- the first frame of a file; EXIF orientation applied, then forgotten; embedded colour profiles ignored
- palette, grayscale, 1-bit, CMYK, LAB, HSV, YCbCr: Pillow's conversion to RGB
- 16-bit grayscale (and 32-bit integers that lie in 0..65535): value * 255 / 65535, rounded
- alpha, also a transparent palette colour: composited over white
- 32-bit float images have no agreed range and are refused
- a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, by libjpeg in the frequency domain, if the caller says how
  large its short side must stay
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from headstart.data.structure import excess_in
from headstart.wording import one_line

DECODER = "pillow-rgb-v1"
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "ICO", "TGA")
"""The formats that are read, by the content of the file, in the order of trying: TGA has no signature and would
accept an icon. Pillow reads more: EPS, which would start Ghostscript, and rare formats whose readers are little
tested."""
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
"""The file types that a folder or an archive is searched for, in training, prediction and the data check alike: formats
of still images that the decoder reads in full. GIF files are mostly animations and placeholders, icons hold several
images, JPEG 2000 and TGA are rare. A file that is named on its own is read by its content, whatever its name."""


class UnreadableImage(Exception):
    """The message is the reason, short enough for a list beside the file name.

    kind: empty_file, too_large, excessive, unsupported_pixels, or unreadable for whatever Pillow cannot read.
    """

    def __init__(self, reason: str, *, kind: str = "unreadable") -> None:
        super().__init__(reason)
        self.kind = kind


def open_image(data: bytes) -> Image.Image:
    """The image file, checked and opened, not yet decoded: the one place where bytes become an image. Raises
    UnreadableImage for an empty file, an excessive structure (data/structure.py), too many pixels, or an unknown
    format."""
    if not data:
        raise UnreadableImage("empty file (0 bytes)", kind="empty_file")
    if excess := excess_in(data):  # before Pillow, which could take minutes for it
        raise UnreadableImage(f"{excess}; re-save the image", kind="excessive")
    with _pillow_errors():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        # Pillow only warns, and warning filters are shared by all threads
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        return image


def decode(data: bytes, *, jpeg_min_side: int | None = None) -> Image.Image:
    """An RGB image of 8 bits per channel, fully loaded. Raises UnreadableImage with the reason.

    jpeg_min_side: px; JPEG files may be decoded smaller as long as neither side falls below that. None: full size."""
    with open_image(data) as image, _pillow_errors():
        if jpeg_min_side is not None and image.format == "JPEG":
            image.draft(None, (jpeg_min_side, jpeg_min_side))
        return rgb_of(image)


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """All that Pillow raises for a file, as UnreadableImage."""
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels", kind="too_large") from None
    except UnidentifiedImageError:
        raise UnreadableImage("not an image that Pillow knows") from None
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError, EOFError ...
        raise UnreadableImage(one_line(error)) from None


def rgb_of(image: Image.Image) -> Image.Image:
    """An opened image as `decode` returns it. It may change, or be returned itself. Raises UnreadableImage, and
    whatever Pillow raises."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode == "F":
        raise UnreadableImage(
            "32-bit float pixels have no agreed range; convert to 8 or 16 bits", kind="unsupported_pixels"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage(
                "32-bit integer pixels outside 0..65535; convert to 8 or 16 bits", kind="unsupported_pixels"
            )
        if "transparency" in image.info:
            values[values == image.info["transparency"]] = 65535
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")
