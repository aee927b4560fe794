"""Images in class folders: train/ and val/ of them, or just class folders."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import ClassVar

from headstart.data.samples import Entry, Scan, Skipped
from headstart.errors import InputError
from headstart.files import read_regular

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation")
SETTLED_NS = 2_000_000_000  # as long as the coarsest clock of a file system (FAT) stands still


@dataclass(frozen=True)
class ClassFolders:
    """A directory."""

    root: str
    columns: ClassVar[tuple[str, ...]] = ()
    base: Path = field(init=False)  # where the root is, although the working folder may change

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", Path(self.root).absolute())

    @property
    def identity(self) -> str:
        return str(self.base)

    def scan(self) -> Scan:
        folder = Path(self.root)
        check_is_folder(folder)
        return lay_out(_walk(folder), self.root)

    def read(self, path: str) -> bytes:
        return read_regular(self.base / path)


@dataclass
class Tree:
    """What lies below a root, without what is hidden: posix names relative to it, files with their stamps."""

    files: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    bad: list[Skipped] = field(default_factory=list)


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image files below `folder`, sorted, hidden ones and hidden folders left out; and the other visible files."""
    images: list[Path] = []
    others: list[Path] = []
    for name, _ in _walk(folder).files:
        (images if is_image(name) else others).append(folder / name)
    return images, others


def lay_out(tree: Tree, root: str) -> Scan:
    """Splits and labels by the names of folders. Raises InputError for a tree without class folders."""
    top = sorted({name for name in tree.folders if "/" not in name}, key=PurePosixPath)
    below = {name.split("/")[0] for name in tree.folders if "/" in name}

    def named(names: tuple[str, ...]) -> str | None:
        """The folder of one of these names, in any case, if it holds folders itself; images alone make it a class."""
        return next((name for name in top if name.lower() in names and name in below), None)

    tree.bad.sort(key=lambda skipped: skipped.path)
    train, val = named(TRAIN_NAMES), named(VAL_NAMES)
    if not train and not val:
        return _class_folders(tree, root, None, split=None)
    parts = [_class_folders(tree, root, base, split=split) for base, split in ((train, "train"), (val, "val")) if base]
    beside = " and ".join(f"{base}/" for base in (train, val) if base)
    unused = [Skipped(name, f"a folder beside {beside}") for name in top if name not in (train, val)]
    return Scan(
        [entry for part in parts for entry in part.entries],
        [skipped for part in parts for skipped in part.skipped] + unused,
        tuple(name for part in parts for name in part.empty),
        tuple(tree.bad),
    )


def no_class_folders(folder: str, images: int) -> InputError:
    """images: those that lie in it all the same."""
    if not images:
        return InputError(f"{folder} has no class folders; expected one folder of images per class")
    return InputError(
        f"{folder} has no class folders, but {images} image{'s' if images > 1 else ''} of its own; expected one folder of images per "
        "class: if it is one of the classes, name the folder above it"
    )


def check_is_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputError(f"{folder} does not exist; name a folder of images")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder; name a folder of class folders")


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def check_name(path: str) -> None:
    """Raise InputError for a name that is no text: it could stand in no table that we write."""
    if "\0" in path:
        raise InputError(f"{path!a}: a name holds the character NUL, which no file has; repair the list of names")
    if not _is_text(path):
        raise InputError(f"{path!a}: the name is not valid UTF-8; rename the file or folder")


def _is_text(name: str) -> bool:
    """False for bytes of the file system that are no UTF-8."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def stamp_of(status: os.stat_result) -> str:
    """Changes when the file's content does, unless somebody takes pains to hide it. "" for a file modified within the
    last seconds: it may change again without its time changing."""
    if time.time_ns() - status.st_mtime_ns < SETTLED_NS:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _class_folders(tree: Tree, root: str, base: str | None, *, split: str | None) -> Scan:
    prefix = f"{base}/" if base else ""
    depth = prefix.count("/")
    labels = sorted({name.split("/")[depth] for name in tree.folders if name.startswith(prefix) and name != base})
    if not labels:
        loose = sum(name.startswith(prefix) and is_image(name) for name, _ in tree.files)
        raise no_class_folders(os.path.join(root, prefix).rstrip("/"), loose)
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    filled = set()
    for name, stamp in tree.files:
        if not name.startswith(prefix):
            continue
        parts = name.split("/")
        if is_image(name) and len(parts) > depth + 1:
            entries.append(Entry(name, parts[depth], split, stamp=stamp))
            filled.add(parts[depth])
        elif is_image(name):
            skipped.append(Skipped(name, "an image outside the class folders"))
        elif len(parts) > depth + 1:
            kind = PurePosixPath(name).suffix.lower() or "no extension"
            skipped.append(Skipped(name, f"{kind} is not an image type we read"))
    return Scan(entries, skipped, tuple(f"{prefix}{label}" for label in labels if label not in filled), tuple(tree.bad))


def visible_files(root: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder below `root`, the root first and each folder once, with the names of its files that are not hidden."""
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if not is_hidden(name)) if real not in seen else []
        if real not in seen:
            yield folder, sorted(name for name in names if not is_hidden(name))
        seen.add(real)


def _walk(root: Path) -> Tree:
    """Level by level, the folders of a level at once: where a look into a folder takes long, many are waited for together.

    A link to a folder is followed unless it leads back into one that it lies in."""
    tree = Tree()
    level: list[tuple[str, frozenset[str]]] = [("", frozenset({os.path.realpath(root)}))]  # with the folders it lies in
    with ThreadPoolExecutor() as pool:
        while level:
            found = list(pool.map(lambda place: _look_into(root, place[0]), level))
            tree.files += [file for files, _, _ in found for file in files]
            tree.bad += [skipped for _, _, bad in found for skipped in bad]
            below = [(name, inside) for (_, inside), (_, names, _) in zip(level, found, strict=True) for name in names]
            level = []
            for name, inside in below:
                tree.folders.append(name)
                real = os.path.realpath(root / name)
                if real not in inside:
                    level.append((name, inside | {real}))
    tree.files.sort()
    return tree


def _look_into(root: Path, folder: str) -> tuple[list[tuple[str, str]], list[str], list[Skipped]]:
    files: list[tuple[str, str]] = []
    folders: list[str] = []
    bad: list[Skipped] = []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if not _is_text(name):
                    bad.append(Skipped(ascii(name)[1:-1], "the name is not valid UTF-8"))
                elif entry.is_dir():
                    folders.append(name)
                else:
                    files.append((name, _stamp(entry)))
    except PermissionError as error:
        raise InputError(f"{root / folder}: {error.strerror}; make the folder readable") from None
    return files, sorted(folders), bad


def _stamp(entry: "os.DirEntry[str]") -> str:
    try:
        return stamp_of(entry.stat())
    except OSError:  # a link to nothing: reading it will say so
        return ""
