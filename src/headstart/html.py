"""What our HTML pages share: the templates in assets/, and pictures as data URIs. One file each, no network."""

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import jinja2


def environment() -> "jinja2.Environment":
    """Templates that escape what they are given and refuse what they are not."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("headstart", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def jpeg_uri(image: Image.Image, *, quality: int = 75) -> str:
    """An RGB image as a data URI."""
    return _uri(image, "JPEG", quality=quality, optimize=True)


def png_uri(image: Image.Image) -> str:
    """An image with an alpha channel as a data URI."""
    return _uri(image, "PNG", optimize=True)


def _uri(image: Image.Image, form: str, **options: object) -> str:
    out = io.BytesIO()
    image.save(out, form, **options)
    return f"data:image/{form.lower()};base64," + base64.b64encode(out.getvalue()).decode()
