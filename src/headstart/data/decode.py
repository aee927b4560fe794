"""The one decoder: bytes of an image file to 8-bit RGB, for training, evaluation and prediction alike.

Policy, named by DECODER in every model file:
- the first frame of a file, of HEIF the primary image; orientation applied, then forgotten; EXIF data that cannot be
  read, and embedded colour profiles, ignored
- palette, grayscale, 1-bit, CMYK, LAB, HSV, YCbCr: Pillow's conversion to RGB
- 16-bit grayscale: value * 255 / 65535, rounded; 12-bit grayscale of TIFF: value * 255 / 4095; where 0 means white,
  inverted
- alpha, also a transparent palette colour: composited over white
- HEIF of more than 8 bits per channel: converted to 8 bits by pillow-heif
- floats, 32-bit and signed integers have no agreed range and are refused, and so are raw files of cameras
- a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, by libjpeg in the frequency domain, if the caller says how
  large its short side must stay
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from headstart.data.file_kinds import AVIF_BRANDS, HEIF_BRANDS, brands_of, is_transformed, kind_of, raw_kind
from headstart.data.structure import excess_in
from headstart.wording import one_line

# Pillow warns of broken EXIF data and large images without naming the file. What matters is an error here, with its
# name, and filters that are set while an image is decoded would be shared by all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

DECODER = "pillow-rgb-v1"
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "ICO", "TGA")
"""The formats that are read, by the content of the file, in the order of trying: TGA has no signature and would
accept an icon. AVIF and HEIF are recognised by their brand. Pillow reads more: EPS, which would start Ghostscript, and
rare formats whose readers are little tested."""
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
    | {".heic", ".heif", ".hif", ".avif"}
)
"""The file types that a folder or an archive is searched for, in training, prediction and the data check alike: formats
of still images that the decoder reads in full. GIF files are mostly animations and placeholders, icons hold several
images, JPEG 2000 and TGA are rare. A file that is named on its own is read by its content, whatever its name.

HEIC is among them even where the extra heic is not installed: the same folder must not be another data set there."""
SIXTEEN_BIT_MAX = "sixteen_bit_max"
"""Key of Image.info of a decoded image of 16 bits per channel: its largest value, 0..65535."""
DIM = 4096
"""Of 65,535. 16-bit images whose values all lie below are perhaps of 12 bits or fewer, and look black."""
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO = 0


class UnreadableImage(Exception):
    """The message is the reason, short enough for a list beside the file name.

    kind: empty_file, too_large, excessive, unsupported_pixels, lacks_extra, other_kind (no image), or unreadable for
    whatever Pillow cannot read.
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
    with _pillow_errors(data):
        image = Image.open(io.BytesIO(data), formats=_formats_for(data))
        # Pillow only warns, and warning filters are shared by all threads
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        if image.format == "TIFF" and (kind := kind_of(data) or raw_kind(image.tag_v2)):  # type: ignore[attr-defined]
            raise UnreadableImage(kind, kind="other_kind")
        if image.format == "HEIF":
            image.info["transformed"] = is_transformed(data)
        return image


def _formats_for(data: bytes) -> tuple[str, ...]:
    brands = brands_of(data)
    if brands & AVIF_BRANDS:
        if not features.check("avif"):
            raise UnreadableImage("AVIF needs a newer Pillow; run pip install -U pillow", kind="lacks_extra")
        return ("AVIF",)
    if brands & HEIF_BRANDS:
        if not _reads_heif():
            raise UnreadableImage("HEIC needs an extra; run pip install 'headstart[heic]'", kind="lacks_extra")
        return ("HEIF",)
    return FORMATS


@cache
def _reads_heif() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def decode(data: bytes, *, jpeg_min_side: int | None = None) -> Image.Image:
    """An RGB image of 8 bits per channel, fully loaded. Raises UnreadableImage with the reason.

    jpeg_min_side: px; JPEG files may be decoded smaller as long as neither side falls below that. None: full size."""
    with open_image(data) as image, _pillow_errors(data):
        if jpeg_min_side is not None and image.format == "JPEG":
            image.draft(None, (jpeg_min_side, jpeg_min_side))
        return rgb_of(image)


@contextmanager
def _pillow_errors(data: bytes) -> Iterator[None]:
    """All that Pillow raises for the file `data`, as UnreadableImage."""
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels", kind="too_large") from None
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError, EOFError ...
        if kind := kind_of(data):
            raise UnreadableImage(kind, kind="other_kind") from None
        unknown = isinstance(error, UnidentifiedImageError)
        raise UnreadableImage("not an image that Pillow knows" if unknown else one_line(error)) from None


def rgb_of(image: Image.Image) -> Image.Image:
    """An opened image as `decode` returns it. It may change, or be returned itself. Raises UnreadableImage, and
    whatever Pillow raises."""
    image.load()
    _apply_orientation(image)
    return _to_rgb(image)


def _apply_orientation(image: Image.Image) -> None:
    """By EXIF, in place. libheif has applied that of a HEIF file, as the format asks for; a file that has it in EXIF
    alone was written by a program that expects it to be applied, too."""
    if image.format == "HEIF":
        orientation = image.info.get("original_orientation")
        if orientation and not image.info.get("transformed"):
            image.getexif()[ExifTags.Base.Orientation] = orientation
    with suppress(Exception):  # broken EXIF data: Pillow raises SyntaxError, struct.error, ValueError ...
        ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode == "F":
        raise _unsupported("32-bit float pixels have no agreed range")
    if image.mode.startswith("I"):
        return _from_sixteen_bits(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    bits, kind = (tags.get(tag, (default,))[0] for tag, default in ((_BITS, 16), (_SAMPLE_FORMAT, 1)))
    if bits > 16 or kind != 1:
        raise _unsupported(f"{bits}-bit {'signed ' if kind == 2 else ''}integer pixels have no agreed range")
    most = 2**bits - 1
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > most:
        raise _unsupported(f"integer pixels outside 0..{most}")
    brightest = int(values.max())
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = most
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts those of 8 bits and fewer
        values = most - values
    rgb = Image.fromarray(((values * 255 + most // 2) // most).astype(np.uint8)).convert("RGB")
    if bits == 16:
        rgb.info[SIXTEEN_BIT_MAX] = brightest
    return rgb


def _unsupported(reason: str) -> UnreadableImage:
    return UnreadableImage(f"{reason}; convert to 8 or 16 bits", kind="unsupported_pixels")
