"""The images that a run was evaluated on, read again for its pages. Missing and changed files are named, not shown."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from PIL import Image

from headstart.config import DataConfig
from headstart.data.decode import UnreadableImage
from headstart.data.sources.open import open_source
from headstart.errors import InputError
from headstart.wording import listed, one_line, plural

ReadImage = Callable[[str], bytes]
"""From the path of an image to the content of its file. Raises OSError, KeyError or InputError."""


def image_reader(data: Mapping[str, Any], root: str | None = None) -> ReadImage:
    """Reads the images of a run. data: its configuration, section data; root: the folder of the images, if it moved.

    Raises InputError if `root` cannot be opened. If the original folder cannot be opened, each read raises InputError.
    """
    known = {field.name for field in fields(DataConfig)}
    try:
        config = DataConfig(**{name: value for name, value in data.items() if name in known})
        return open_source(config if root is None else replace(config, root=root)).read
    except (TypeError, InputError) as error:
        if root is not None:
            raise
        reason = one_line(error)

    def fail(path: str) -> bytes:
        raise InputError(reason)

    return fail


class OriginalImages:
    """Decodes images whose files still have the SHA-256 of the manifest; remembers the other ones. sha256: by path."""

    def __init__(self, read: ReadImage, sha256: Mapping[str, str], decode: Callable[[bytes], Image.Image]) -> None:
        self._read, self._sha256, self._decode = read, sha256, decode
        self._requested: set[str] = set()
        self._missing: dict[str, str] = {}

    def image(self, path: str) -> Image.Image | None:
        """None for an image that is missing, changed or unreadable."""
        self._requested.add(path)
        try:
            content = self._read(path)
            if hashlib.sha256(content).hexdigest() == self._sha256.get(path):
                return self._decode(content)
            self._missing[path] = "the file has changed"
        except (OSError, KeyError, InputError, UnreadableImage) as error:
            self._missing[path] = getattr(error, "strerror", None) or str(error)
        return None

    def unread(self) -> list[str]:
        """'3 of 16 images cannot be shown: a.jpg (No such file or directory), ...', or nothing if all were read."""
        named = listed([f"{path} ({reason})" for path, reason in self._missing.items()])
        count = len(self._missing)
        return [f"{count} of {plural(len(self._requested), 'image')} cannot be shown: {named}"] if count else []
