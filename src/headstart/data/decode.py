"""The one decoder: bytes of an image file to 8-bit RGB, for training, evaluation and prediction alike.

Policy, named by DECODER in every model file:
- the first frame of a file; EXIF orientation applied, then forgotten; embedded colour profiles ignored
- palette, grayscale, 1-bit, CMYK, LAB, HSV, YCbCr: Pillow's conversion to RGB
- 16-bit grayscale (and 32-bit integers that lie in 0..65535): value * 255 / 65535, rounded
- alpha, also a transparent palette colour: laid over white
- 32-bit float images have no agreed range and are refused
- a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, by libjpeg in the frequency domain, if the caller says how large
  its short side must stay
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from headstart.data.structure import excess_in

DECODER = "pillow-rgb-v1"
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "ICO", "TGA")
"""What a file may hold, whatever its name says, in the order of trying: TGA has no mark at its beginning, and takes an icon for its own. Pillow
knows more: EPS, which would start Ghostscript, and rarities whose readers are little tried."""
EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
        *(".ico", ".tga", ".icb", ".vda", ".vst"),
    }
)
"""How the names of such files end."""


class UnreadableImage(Exception):
    """The message is the reason, fit for a list beside the file name.

    kind: empty_file, too_large, excessive, unsupported_pixels, or unreadable for all that Pillow itself gives up on.
    """

    def __init__(self, reason: str, *, kind: str = "unreadable") -> None:
        super().__init__(reason)
        self.kind = kind


def decode(data: bytes, *, jpeg_min_side: int | None = None) -> Image.Image:
    """An RGB image of 8 bits per channel, fully loaded. Raises UnreadableImage with the reason.

    jpeg_min_side: px; JPEG files may be decoded smaller as long as neither side falls below that. None: at full size."""
    if not data:
        raise UnreadableImage("empty file (0 bytes)", kind="empty_file")
    check_structure(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Pillow only warns of these; warning filters are shared by all threads, so the size is looked at here
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            if jpeg_min_side is not None and image.format == "JPEG":
                image.draft(None, (jpeg_min_side, jpeg_min_side))
            return rgb_of(image)
    except UnreadableImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels", kind="too_large") from None
    except UnidentifiedImageError:
        raise UnreadableImage("not an image that Pillow knows") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError, EOFError ...
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from None


def check_structure(data: bytes) -> None:
    """Raise UnreadableImage for a file that holds far more around its pixels than images do: reading it could take minutes."""
    if excess := excess_in(data):
        raise UnreadableImage(f"{excess}; re-save the image", kind="excessive")


def rgb_of(image: Image.Image) -> Image.Image:
    """An opened image by the same policy. It may be changed, and may be what is returned. Raises UnreadableImage, and what Pillow raises."""
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
        paper = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, over).convert("RGB")
    return image.convert("RGB")
