"""The image files of a finished run, as its pages show them: unchanged since, or not at all."""

import hashlib
from collections.abc import Callable, Mapping

from headstart.data.decode import UnreadableImage
from headstart.errors import InputError

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
