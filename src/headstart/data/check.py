"""The data doctor's look at every file of an image folder: what is wrong with it, and what the good ones are.

What it holds per file is bounded: files beyond MAX_FILE_BYTES and images beyond Pillow's limit are not loaded, only
regular files are opened, and large files and images are looked at one at a time.
"""

import hashlib
import io
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from headstart.cores import usable_cores
from headstart.data.balance import Named, thin_classes
from headstart.data.decode import UnreadableImage, decode
from headstart.data.duplicates import perceptual_hashes
from headstart.data.findings import KEEP, Finding
from headstart.data.folders import EXTENSIONS, TRAIN_NAMES, VAL_NAMES, check_is_folder, is_hidden
from headstart.errors import InputError

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
    """What the files of a folder are. counts: usable images of each (split, class folder), also of empty ones."""

    root: Path
    num_files: int
    good: list[Good]
    findings: list[Finding]
    counts: Counter[tuple[str, str]]
    census: Census


def check_files(
    root: Path,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Checked:
    """Read, hash and decode every file below `root`, and compare the class folders with each other.

    num_threads: None for one per core; progress: is told how many files are done, 1 at a time, in threads.
    Raises InputError if `root` is no folder of class folders. Whatever is in the files is a finding, not an error.
    """
    check_is_folder(root)
    found = _scan(root)
    one_at_a_time = threading.RLock()

    def look(file: Named) -> tuple[Good | None, list[Finding]]:
        result = _look(root, file, one_at_a_time)
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
    return Checked(root, len(found.files), good, findings, counts, _census(good))


@dataclass
class _Scan:
    files: list[Named] = field(default_factory=list)
    classes: list[tuple[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def _scan(root: Path) -> _Scan:
    found = _Scan()
    train, val = _named(root, TRAIN_NAMES), _named(root, VAL_NAMES)
    bases = [(path, split) for path, split in ((train, "train"), (val, "val")) if path is not None]
    if len(bases) == 1:
        has, lacks = ("train", "val") if train else ("val", "train")
        found.findings.append(Finding.of("missing_split", has, f"{has}/ is there and {lacks}/ is not", KEEP))
    for base, split in bases or [(root, "")]:
        for folder in _subfolders(base):
            found.classes.append((split, folder.name))
            _walk(found, root, folder, split=split, label=folder.name)
        _loose(found, root, base)
    if bases:
        _loose(found, root, root)
        for path in _subfolders(root):
            if path not in (train, val):
                found.findings.append(Finding.of("unused_folder", path.name, "beside train and val", KEEP))
    if not found.classes:
        raise InputError(f"{root} has no class folders; expected one folder of images per class")
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _named(root: Path, names: tuple[str, ...]) -> Path | None:
    """As lay_out of folders.py finds train/ and val/: images alone make a folder of that name a class."""
    return next((path for path in _subfolders(root) if path.name.lower() in names and _subfolders(path)), None)


def _loose(found: _Scan, root: Path, folder: Path) -> None:
    """What lies directly in a folder of class folders."""
    for entry in sorted(folder.iterdir()):
        path = entry.relative_to(root).as_posix()
        if is_hidden(entry.name):
            found.findings.append(_hidden_entry(entry, path))
        elif not entry.is_dir() and entry.suffix.lower() in EXTENSIONS:
            found.findings.append(Finding.of("outside_class", path, "in no class folder", KEEP))


def _walk(found: _Scan, root: Path, folder: Path, *, split: str, label: str) -> None:
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in visited:  # a link back into the folder
            folders.clear()
            continue
        visited.add(os.path.realpath(parent))
        for name in sorted(folders + names):
            path = Path(parent, name).relative_to(root).as_posix()
            if is_hidden(name):
                found.findings.append(_hidden_entry(Path(parent, name), path))
            elif name in folders:
                continue
            elif _unusable(path):
                found.findings.append(Finding.of("bad_name", path, "not valid UTF-8", KEEP))
            else:
                found.files.append(Named(path, split, label))
        folders[:] = sorted(name for name in folders if not is_hidden(name))


def _unusable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return True
    return False


def _hidden_entry(entry: Path, path: str) -> Finding:
    if not entry.is_dir():
        return Finding.of("hidden", path, "a hidden file", KEEP)
    count = sum(len(names) for _, _, names in os.walk(entry))
    return Finding.of("hidden", path, f"a hidden folder of {count} {'file' if count == 1 else 'files'}", KEEP)


def _look(root: Path, file: Named, one_at_a_time: threading.RLock) -> tuple[Good | None, list[Finding]]:
    with ExitStack() as turn:
        return _examine(root, file, large=lambda: turn.enter_context(one_at_a_time))


def _examine(root: Path, file: Named, *, large: Callable[[], object]) -> tuple[Good | None, list[Finding]]:
    """large: is called before what takes much memory; it waits for its turn."""
    path, extension, data = file.path, Path(file.path).suffix.lower(), b""
    try:
        data = _read(root / path, large=large)
        if _claimed_pixels(data) > _LARGE_PIXELS:
            large()
        if extension not in EXTENSIONS:
            return None, [Finding.of("unsupported_type", path, _what(data, extension))]
        image = decode(data)
        hashes, flat = perceptual_hashes(image), _spread(image) <= FLAT
    except UnreadableImage as error:
        kind = "truncated" if error.kind == "unreadable" and _is_cut(data, str(error)) else error.kind
        return None, [Finding.of(kind if extension in EXTENSIONS else "unsupported_type", path, str(error))]
    except MemoryError:
        return None, [Finding.of("too_large", path, "it does not fit in the memory of this machine")]
    except OSError as error:
        return None, [Finding.of("unreadable", path, error.strerror or str(error))]
    header = _header(data)
    findings = _oddities(path, image.size, header, flat=flat)
    sha256 = hashlib.sha256(data).hexdigest()
    return Good(file, sha256, image.size, header.mode, header.format, header.orientation, hashes), findings


def _read(path: Path, *, large: Callable[[], object]) -> bytes:
    """Raises OSError, UnreadableImage for what is no regular file or too long to be an image."""
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
    if named != header.format and not (extension == ".bmp" and header.format == "DIB"):
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
            found.append(Finding.of("class_in_one_split", f"{there[0]}/{label}", f"in {there[0]} only", KEEP))
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
