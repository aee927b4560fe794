"""One file of the data check: whether it is a usable image, and what is unusual about it.

Memory is bounded: files beyond MAX_FILE_BYTES and images beyond Pillow's limit are not loaded, only regular files are
opened, and large files and images are examined one at a time.
"""

import hashlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from headstart.data.decode import DIM, SIXTEEN_BIT_MAX, UnreadableImage, decode, open_image
from headstart.data.folder_walk import extension_of, is_image, unsupported_type
from headstart.data.source import Source
from headstart.data.sources.folders import ClassFolders
from headstart.data.sources.table import ListedImages
from headstart.data_doctor.balance import Named
from headstart.data_doctor.duplicates import perceptual_hashes
from headstart.data_doctor.findings import KEEP, Finding

MAX_FILE_BYTES = 1 << 28
TINY_PX = 16  # a side below this
FLAT = 3  # of 255: a single colour after JPEG differs by no more
_LARGE_BYTES, _LARGE_PIXELS = 1 << 25, 1 << 24  # beyond these one at a time
_COMPLETE_END = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}  # first and last bytes of a complete file
_SEVERAL_FRAMES = ("GIF", "PNG", "WEBP", "TIFF")  # a JPEG of several frames (MPO) holds a preview, not another image


@dataclass(frozen=True)
class Good:
    """A usable image. hashes: uint64 (2, words), perceptual, of the image and of its mirror image."""

    file: Named
    sha256: str
    size: tuple[int, int]
    mode: str
    format: str
    orientation: int
    hashes: np.ndarray


def examine(source: Source, file: Named, *, large: Callable[[], object]) -> tuple[Good | None, list[Finding]]:
    """Whatever is in the file is a finding, not an error. large: called before what takes much memory; may block."""
    path, data = file.path, b""
    unsupported = isinstance(source, ClassFolders) and not is_image(path)  # other sources list files of any name
    try:
        data = _read(source, path, large=large)
        with open_image(data) as image:
            if image.width * image.height > _LARGE_PIXELS:
                large()
        rgb = decode(data)
        if unsupported:
            message = f"{extension_of(path)} is not read; it is an image of {rgb.width}x{rgb.height} px, "
            return None, [Finding.of("unsupported_type", path, f"{message}save it as .jpg or .png to use it")]
        hashes = perceptual_hashes(rgb)
        flat = all(high - low <= FLAT for low, high in rgb.getextrema())  # type: ignore[misc]
    except UnreadableImage as error:
        kind, reason = error.kind, str(error)
        if unsupported:
            kind, reason = "unsupported_type", unsupported_type(path) if data else reason
        elif kind == "unreadable" and _is_cut(data, reason):
            kind = "truncated"
        keep = (KEEP,) if kind == "lacks_extra" else ()
        return None, [Finding.of(kind, path, reason, *keep)]
    except MemoryError:
        return None, [Finding.of("too_large", path, "it does not fit into the memory that is free", KEEP)]
    except OSError as error:
        return None, [Finding.of("unreadable", path, error.strerror or str(error))]
    kind, mode, orientation, several_frames = _header(data)
    good = Good(file, hashlib.sha256(data).hexdigest(), rgb.size, mode, kind, orientation, hashes)
    oddities = _oddities(good, several_frames=several_frames, flat=flat)
    if (brightest := rgb.info.get(SIXTEEN_BIT_MAX, DIM)) < DIM:
        oddities.append(Finding.of("dim", path, f"values up to {brightest:,} of 65,535", KEEP))
    return good, oddities


def _read(source: Source, name: str, *, large: Callable[[], object]) -> bytes:
    """Raises OSError, and UnreadableImage for what is not a regular file or too long for an image."""
    if not isinstance(source, ClassFolders | ListedImages):
        data = source.read(name)
        if len(data) > MAX_FILE_BYTES:
            raise UnreadableImage(f"{len(data) / 2**20:.0f} MiB long", kind="too_large")
        return data
    path = source.file(name) if isinstance(source, ListedImages) else source.base / name
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
        raise UnreadableImage("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise UnreadableImage(f"{status.st_size / 2**20:.0f} MiB long", kind="too_large")
    if status.st_size > _LARGE_BYTES:
        large()
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES)


def _header(data: bytes) -> tuple[str, str, int, bool]:
    """Format, mode, orientation, and whether there are several frames. data: an image that decodes."""
    with open_image(data) as image:
        kind = "JPEG" if image.format == "MPO" else image.format or "?"
        mode = image.mode
        try:
            orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # damaged EXIF data raise many things; the decoder ignores them too
            orientation = 1
        several = kind in _SEVERAL_FRAMES
        try:
            image.seek(1)
        except Exception:  # EOFError, or a damaged second frame
            several = False
        return kind, mode, orientation, several


def _oddities(image: Good, *, several_frames: bool, flat: bool) -> list[Finding]:
    found = []
    path, size = image.file.path, image.size
    extension = Path(path).suffix.lower()
    named = Image.registered_extensions().get(extension)
    if is_image(path) and named != image.format and not (extension == ".bmp" and image.format == "DIB"):
        found.append(Finding.of("wrong_extension", path, f"a {image.format} image named {extension}", KEEP))
    if min(size) < TINY_PX:
        found.append(Finding.of("tiny", path, f"{size[0]}x{size[1]} px"))
    elif flat:
        found.append(Finding.of("single_colour", path, f"{size[0]}x{size[1]} px of one colour"))
    if several_frames:
        found.append(Finding.of("animated", path, f"a {image.format} image of several frames", KEEP))
    return found


def _is_cut(data: bytes, reason: str) -> bool:
    if data[:4] == b"RIFF" and len(data) >= 12:
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    missing = any(data.startswith(start) and end not in data[-4096:] for start, end in _COMPLETE_END.items())
    return missing or "truncated" in reason.lower()
