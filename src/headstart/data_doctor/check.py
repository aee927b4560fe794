"""The data doctor's look at every image of a folder or another source: what is wrong with it, and what the good ones are.

What it holds per file is bounded: files beyond MAX_FILE_BYTES and images beyond Pillow's limit are not loaded, only
regular files are opened, and large files and images are looked at one at a time.
"""

import hashlib
import io
import stat
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from headstart.data.decode import UnreadableImage, check_structure, decode
from headstart.data.samples import Source
from headstart.data.sources.folders import EXTENSIONS, ClassFolders
from headstart.data.sources.table import ListedImages
from headstart.data_doctor.balance import Named, thin_classes
from headstart.data_doctor.duplicates import perceptual_hashes
from headstart.data_doctor.findings import KEEP, Finding
from headstart.data_doctor.survey import survey
from headstart.runtime.hardware import usable_cores

MAX_FILE_BYTES = 1 << 28
TINY_PX = 16  # a side below this
FLAT = 3  # of 255: a single colour after JPEG differs by no more
_LARGE_BYTES, _LARGE_PIXELS = 1 << 25, 1 << 24  # beyond these one at a time
_WHOLE_END = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}  # how a whole file begins and ends
_SEVERAL_FRAMES = ("GIF", "PNG", "WEBP", "TIFF")  # a JPEG of several frames (MPO) carries a preview, not another image


@dataclass(frozen=True)
class Good:
    """An image that can be used. hashes: uint64 (2, words), perceptual, of the image and of its mirror image."""

    file: Named
    sha256: str
    size: tuple[int, int]
    mode: str
    format: str
    orientation: int
    hashes: np.ndarray


@dataclass(frozen=True)
class Census:
    """Counts over the good images. Not faults."""

    formats: dict[str, int]
    modes: dict[str, int]
    rotated: int  # by the EXIF orientation, which the decoder applies
    smallest: tuple[int, int] | None
    median: tuple[int, int] | None
    largest: tuple[int, int] | None


@dataclass(frozen=True)
class Checked:
    """What the images of a source are. counts: usable images of each (split, class), also of empty ones."""

    source: Source
    num_files: int
    good: list[Good]
    findings: list[Finding]
    counts: Counter[tuple[str, str]]
    census: Census


def check_files(
    source: Source,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Checked:
    """Read, hash and decode every file of a source, and compare the classes with each other.

    num_threads: None for one per core; progress: is told how many files are done, 1 at a time, in threads.
    Raises InputError if nothing is there to look at. Whatever is in the files is a finding, not an error.
    """
    found = survey(source)
    one_at_a_time = threading.RLock()

    def look(file: Named) -> tuple[Good | None, list[Finding]]:
        result = _look(source, file, one_at_a_time)
        if progress is not None:
            progress(1)
        return result

    with ThreadPoolExecutor(num_threads or usable_cores()) as pool:
        looked = list(pool.map(look, found.files))
    good = [image for image, _ in looked if image is not None]
    findings = found.findings + [finding for _, ours in looked for finding in ours]
    counts: Counter[tuple[str, str]] = Counter(dict.fromkeys(found.classes, 0))
    counts.update((image.file.split, image.file.label) for image in good)
    findings += _compare_classes(counts) + thin_classes(counts)
    return Checked(source, len(found.files), good, findings, counts, _census(good))


def _look(source: Source, file: Named, one_at_a_time: threading.RLock) -> tuple[Good | None, list[Finding]]:
    with ExitStack() as turn:
        return _examine(source, file, large=lambda: turn.enter_context(one_at_a_time))


def _examine(source: Source, file: Named, *, large: Callable[[], object]) -> tuple[Good | None, list[Finding]]:
    """large: is called before what takes much memory; it waits for its turn."""
    path, extension, data = file.path, Path(file.path).suffix.lower(), b""
    by_name = isinstance(source, ClassFolders)  # elsewhere whatever is listed is read, and may have no extension
    try:
        data = _read(source, path, large=large)
        check_structure(data)
        if _claimed_pixels(data) > _LARGE_PIXELS:
            large()
        if by_name and extension not in EXTENSIONS:
            return None, [Finding.of("unsupported_type", path, _what(data, extension))]
        image = decode(data)
        hashes, flat = perceptual_hashes(image), _spread(image) <= FLAT
    except UnreadableImage as error:
        kind = "truncated" if error.kind == "unreadable" and _is_cut(data, str(error)) else error.kind
        return None, [
            Finding.of(kind if extension in EXTENSIONS or not by_name else "unsupported_type", path, str(error))
        ]
    except MemoryError:
        return None, [Finding.of("too_large", path, "it does not fit in the memory of this machine")]
    except OSError as error:
        return None, [Finding.of("unreadable", path, error.strerror or str(error))]
    header = _header(data)
    findings = _oddities(path, image.size, header, flat=flat)
    sha256 = hashlib.sha256(data).hexdigest()
    return Good(file, sha256, image.size, header.mode, header.format, header.orientation, hashes), findings


def _read(source: Source, name: str, *, large: Callable[[], object]) -> bytes:
    """Raises OSError, UnreadableImage for what is no regular file or too long to be an image."""
    if not isinstance(source, ClassFolders | ListedImages):
        data = source.read(name)
        if len(data) > MAX_FILE_BYTES:
            raise UnreadableImage(f"{len(data) / 2**20:.0f} MiB long", kind="too_large")
        return data
    path = source.base / name
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
        raise UnreadableImage("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise UnreadableImage(f"{status.st_size / 2**20:.0f} MiB long", kind="too_large")
    if status.st_size > _LARGE_BYTES:
        large()
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES)


@dataclass(frozen=True)
class _Header:
    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    several_frames: bool


def _header(data: bytes) -> _Header:
    """Of an image that decodes."""
    with Image.open(io.BytesIO(data)) as image:
        kind = "JPEG" if image.format == "MPO" else image.format or "?"
        mode, size = image.mode, image.size
        try:
            orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # damaged EXIF data raise all sorts of things; the decoder ignores them too
            orientation = 1
        several = False
        if kind in _SEVERAL_FRAMES:
            try:
                image.seek(1)
                several = True
            except Exception:  # EOFError, or a damaged second frame that nobody reads
                several = False
        return _Header(kind, mode, size, orientation, several)


def _oddities(path: str, size: tuple[int, int], header: _Header, *, flat: bool) -> list[Finding]:
    found = []
    extension = Path(path).suffix.lower()
    named = Image.registered_extensions().get(extension)
    if extension in EXTENSIONS and named != header.format and not (extension == ".bmp" and header.format == "DIB"):
        message = f"a {header.format} image named {extension}"
        found.append(Finding.of("wrong_extension", path, message, KEEP))
    if min(size) < TINY_PX:
        found.append(Finding.of("tiny", path, f"{size[0]}x{size[1]} px"))
    elif flat:
        found.append(Finding.of("single_colour", path, f"{size[0]}x{size[1]} px of one colour"))
    if header.several_frames:
        found.append(Finding.of("animated", path, f"a {header.format} image of several frames", KEEP))
    return found


def _spread(image: Image.Image) -> int:
    """The largest difference within a channel, 0 to 255."""
    return max(high - low for low, high in image.getextrema())  # type: ignore[misc]


def _what(data: bytes, extension: str) -> str:
    name = extension or "no extension"
    try:
        image = decode(data)
    except UnreadableImage:
        return f"{name} is not an image type that is read"
    return f"{name} is not read; it is an image of {image.width}x{image.height} px, save it as .jpg or .png to use it"


def _is_cut(data: bytes, reason: str) -> bool:
    """Whether the end of an image file that cannot be decoded is missing."""
    if data[:4] == b"RIFF" and len(data) >= 12:
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    missing = any(data.startswith(start) and end not in data[-4096:] for start, end in _WHOLE_END.items())
    return missing or "truncated" in reason.lower()


def _claimed_pixels(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except Exception:  # the decoder will say what is wrong
        return 0


def _compare_classes(counts: Counter[tuple[str, str]]) -> list[Finding]:
    found = []
    splits = sorted({split for split, _ in counts})
    for label in sorted({label for _, label in counts}):
        there = [split for split in splits if (split, label) in counts]
        for split in there:
            folder = f"{split}/{label}" if split else label
            if not counts[(split, label)]:
                found.append(Finding.of("empty_class", folder, "no image that can be used", KEEP))
        if len(there) < len(splits):
            message = f"in {' and '.join(there)} only"
            found.append(Finding.of("class_in_one_split", f"{there[0]}/{label}", message, KEEP))
    return found


def _census(good: list[Good]) -> Census:
    by_area = sorted((image.size for image in good), key=lambda size: size[0] * size[1])
    return Census(
        formats=dict(Counter(image.format for image in good).most_common()),
        modes=dict(Counter(image.mode for image in good).most_common()),
        rotated=sum(image.orientation != 1 for image in good),
        smallest=by_area[0] if by_area else None,
        median=by_area[len(by_area) // 2] if by_area else None,
        largest=by_area[-1] if by_area else None,
    )
