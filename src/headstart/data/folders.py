"""Images in class folders: train/ and val/ of them, or just class folders. In a directory, or in a zip archive."""

import os
import time
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from headstart.data.samples import Entry, PerProcess, Scan, Skipped
from headstart.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation")
SETTLED_NS = 2_000_000_000  # as long as the coarsest clock of a file system (FAT) stands still


@dataclass(frozen=True)
class ClassFolders:
    """A directory. to_measure: whether images are only measured, so that val/ is all that is wanted of it."""

    root: str
    to_measure: bool = False
    base: Path = field(init=False)  # where the root is, although the working folder may change

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", Path(self.root).absolute())

    def scan(self) -> Scan:
        folder = Path(self.root)
        check_is_folder(folder)
        return lay_out(_walk(folder), self.root, to_measure=self.to_measure)

    def read(self, path: str) -> bytes:
        return (self.base / path).read_bytes()


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
        (images if _is_image(name) else others).append(folder / name)
    return images, others


def lay_out(tree: Tree, root: str, *, to_measure: bool = False) -> Scan:
    """Splits and labels by the names of folders. Raises InputError for a tree that cannot be trained on."""
    top = sorted({name for name in tree.folders if "/" not in name}, key=PurePosixPath)
    below = {name.split("/")[0] for name in tree.folders if "/" in name}

    def named(names: tuple[str, ...]) -> str | None:
        """The folder of one of these names, in any case, if it holds folders itself; images alone make it a class."""
        return next((name for name in top if name.lower() in names and name in below), None)

    tree.bad.sort(key=lambda skipped: skipped.path)
    train, val = named(TRAIN_NAMES), named(VAL_NAMES)
    if to_measure:
        return _class_folders(tree, root, val, split="val" if val else None)
    if train and val:
        first, second = _class_folders(tree, root, train, split="train"), _class_folders(tree, root, val, split="val")
        unused = [Skipped(name, f"a folder beside {train}/ and {val}/") for name in top if name not in (train, val)]
        skipped = first.skipped + second.skipped + unused
        return Scan(first.entries + second.entries, skipped, first.empty + second.empty, tuple(tree.bad))
    if train:
        raise InputError(
            f"{root} has {train}/ but no val/; add val/ with the same class folders, or name {os.path.join(root, train)} "
            "as data.root to have a validation part split off"
        )
    if val:
        raise InputError(f"{root} has {val}/ but no train/; add train/ with the same class folders")
    return _class_folders(tree, root, None, split=None)


def check_is_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputError(f"{folder} does not exist; name a folder of images")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder; name a folder of class folders")


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def check_name(path: str) -> None:
    """Raise InputError for a name that is no text: it could stand in no table that we write."""
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


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _class_folders(tree: Tree, root: str, base: str | None, *, split: str | None) -> Scan:
    prefix = f"{base}/" if base else ""
    depth = prefix.count("/")
    labels = sorted({name.split("/")[depth] for name in tree.folders if name.startswith(prefix) and name != base})
    if not labels:
        raise InputError(
            f"{os.path.join(root, prefix).rstrip('/')} has no class folders; expected one folder of images per class"
        )
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    filled = set()
    for name, stamp in tree.files:
        if not name.startswith(prefix):
            continue
        parts = name.split("/")
        if _is_image(name) and len(parts) > depth + 1:
            entries.append(Entry(name, parts[depth], split, stamp=stamp))
            filled.add(parts[depth])
        elif _is_image(name):
            skipped.append(Skipped(name, "an image outside the class folders"))
        elif len(parts) > depth + 1:
            kind = PurePosixPath(name).suffix.lower() or "no extension"
            skipped.append(Skipped(name, f"{kind} is not an image type we read"))
    return Scan(entries, skipped, tuple(f"{prefix}{label}" for label in labels if label not in filled), tuple(tree.bad))


def _walk(root: Path) -> Tree:
    """Level by level, the folders of a level at once: where a look into a folder takes long, many are waited for together."""
    tree = Tree()
    level, visited = [""], {os.path.realpath(root)}
    with ThreadPoolExecutor() as pool:
        while level:
            found = list(pool.map(lambda name: _look_into(root, name), level))
            tree.files += [file for files, _, _ in found for file in files]
            tree.bad += [skipped for _, _, bad in found for skipped in bad]
            level = []
            for _, folders, _ in found:
                for name in folders:
                    tree.folders.append(name)
                    real = os.path.realpath(root / name)
                    if real not in visited:  # else a link back into the folder
                        visited.add(real)
                        level.append(name)
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


def tree_of(names: Iterable[tuple[str, str]]) -> Tree:
    """Of (posix name, stamp) pairs, as an archive lists them; a name that ends in / is a folder."""
    tree = Tree()
    folders: set[str] = set()
    for name, stamp in names:
        parts: Sequence[str] = PurePosixPath(name).parts
        if not parts or any(is_hidden(part) for part in parts):
            continue
        check_name(name)
        inner = parts if name.endswith("/") else parts[:-1]
        folders |= {"/".join(inner[: depth + 1]) for depth in range(len(inner))}
        if not name.endswith("/"):
            tree.files.append(("/".join(parts), stamp))
    tree.files.sort()
    tree.folders = sorted(folders)
    return tree


class ZippedFolders:
    """A zip archive of class folders. Each image is read out of it when it is needed; nothing is unpacked."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._archives = PerProcess(_opened, root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZippedFolders) and self.root == other.root

    __hash__ = None  # type: ignore[assignment]

    def scan(self) -> Scan:
        stamp = stamp_of(os.stat(self.root))
        tree = tree_of((entry.filename, stamp) for entry in self._archives.get().infolist())
        tops = {name.split("/")[0] for name in tree.folders}
        if len(tops) == 1 and any(
            "/" in name for name in tree.folders
        ):  # the archive of a folder rather than of its content
            top = tops.pop() + "/"
            inner = Tree([(name.removeprefix(top), stamp) for name, stamp in tree.files if name.startswith(top)],
                         [name.removeprefix(top) for name in tree.folders if name.startswith(top)])  # fmt: skip
            scan = lay_out(inner, self.root)
            entries = [replace(entry, path=top + entry.path) for entry in scan.entries]
            return Scan(
                entries, [Skipped(top + s.path, s.reason) for s in scan.skipped], tuple(top + e for e in scan.empty)
            )
        return lay_out(tree, self.root)

    def read(self, path: str) -> bytes:
        try:
            return self._archives.get().read(path)
        except (KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise OSError(f"not readable in {self.root}: {error}") from None


def _opened(root: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(root)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{root} cannot be read as a zip archive: {error}") from None
