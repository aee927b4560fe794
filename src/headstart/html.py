"""Shared by the HTML pages: the templates in assets/, their filters, and images as data URIs."""

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from headstart.wording import plural

if TYPE_CHECKING:
    import jinja2


def environment() -> "jinja2.Environment":
    """Templates that escape values in HTML and raise for an unknown name."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.PackageLoader("headstart", "assets"),
        autoescape=lambda name: not (name or "").endswith(".md.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "interval": interval, "plural": plural}
    return found


def percent(share: float | None, digits: int = 1) -> str:
    """'91.8%'; a dash for None and NaN."""
    return "–" if share is None or math.isnan(share) else f"{share:.{digits}%}"


def interval(ends: Sequence[float]) -> str:
    """'86.4 to 95.2%'."""
    return f"{100 * ends[0]:.1f} to {ends[1]:.1%}"


def jpeg_uri(image: Image.Image, *, quality: int = 75) -> str:
    """An RGB image as a data URI."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
