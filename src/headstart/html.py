"""What our HTML pages share: the templates in assets/, and pictures as data URIs. One file each, no network."""

import base64
import hashlib
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from PIL import Image

from headstart.data.decode import UnreadableImage
from headstart.errors import InputError

if TYPE_CHECKING:
    import jinja2

MAX_NAMED = 3  # images that a message names


def content_of(read: Callable[[str], bytes], path: str, sha256: str | None) -> bytes:
    """The file of an image that still is what was measured. Raises UnreadableImage, which says why there is none."""
    try:
        content = read(path)
    except (OSError, KeyError, InputError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImage(reason) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UnreadableImage("it is another image now")
    return content


def not_shown(reasons: Mapping[str, str], *, of: int) -> str:
    """'3 of 16 images cannot be shown: a.jpg (No such file or directory), ...'. reasons: of each path that is lost."""
    named = ", ".join(f"{path} ({reason})" for path, reason in list(reasons.items())[:MAX_NAMED])
    more = f" and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
    return f"{len(reasons)} of {of} images cannot be shown: {named}{more}"


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
