"""Shared by the HTML pages: the templates in assets/, their filters, and images as data URIs."""

import base64
import io
import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from headstart.wording import plural, shown

if TYPE_CHECKING:
    import jinja2


HEAT = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"
)  # fmt: skip
"""The colours of Grad-CAM from no to the strongest evidence: viridis (van der Walt and Smith 2015), whose lightness
rises evenly, so that it can be read in grey and with every kind of colour vision."""


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
    found.filters |= {"percent": percent, "interval": interval, "plural": plural, "shell": shlex.quote, "shown": shown}
    found.globals["HEAT"] = HEAT
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
