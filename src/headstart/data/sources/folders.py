"""Images in class folders: train/ and val/ with class folders in them, or class folders alone."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from headstart.data.folder_walk import is_image, unsupported_type, walk
from headstart.data.source import Entry, Scan, Skipped, Source
from headstart.data.sources.columns import is_text
from headstart.errors import InputError
from headstart.files import read_regular
from headstart.wording import plural

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation")
NAMES_OF_FOLDERS = "the names of folders give class and split, and data.groups keeps images together"


@dataclass
class ClassFolders(Source):
    """A directory."""

    root: str
    instead_of_columns = NAMES_OF_FOLDERS

    def __post_init__(self) -> None:
        self.base = Path(self.root).absolute()  # as the working folder may change

    def check(self) -> None:
        if not self.base.exists():
            raise InputError(f"{self.root} does not exist; name a folder of images, a zip file, a table or shards")
        if not self.base.is_dir():
            raise InputError(
                f"{self.root} is a file of an unknown type; name a folder of class folders, a zip file, a table or "
                "shards"
            )
        if os.access(self.base, os.R_OK):
            with os.scandir(self.base) as entries:
                empty = not any(entry.is_dir() for entry in entries)
            if empty:
                lay_out(self.tree(), self.root)  # raises

    def tree(self) -> "Tree":
        folder, tree = Path(self.root), Tree()
        if not folder.is_dir():
            self.check()
        for found in walk(folder, stamps=True):
            if found.is_hidden:
                tree.hidden.append((found.path, found.kind == "hidden folder"))
            elif found.kind == "folder":
                tree.folders.append(found.path)
            elif is_text(found.path):
                tree.files.append((found.path, found.stamp))
            else:
                tree.bad.append(Skipped(ascii(found.path)[1:-1], "the name is not valid UTF-8", "bad_name"))
        return tree

    def scan(self) -> Scan:
        return lay_out(self.tree(), self.root)

    def read(self, path: str) -> bytes:
        return read_regular(self.base / path)


@dataclass
class Tree:
    """What lies below a root, by posix names relative to it, sorted: files with their stamps; hidden (path, is a
    folder)."""

    files: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: list[tuple[str, bool]] = field(default_factory=list)
    bad: list[Skipped] = field(default_factory=list)


def lay_out(tree: Tree, root: str) -> Scan:
    """Splits and labels by the names of folders. Raises InputError for a tree without class folders."""
    top = sorted({name for name in tree.folders if "/" not in name})
    parents = {name.split("/")[0] for name in tree.folders if "/" in name}

    def named(names: tuple[str, ...]) -> str | None:
        """The folder of one of these names, in any case, if it holds folders itself; with images alone it is a
        class."""
        return next((name for name in top if name.lower() in names and name in parents), None)

    train, val = named(TRAIN_NAMES), named(VAL_NAMES)
    if not train and not val:
        return _class_folders(tree, root, None, split=None)
    parts = [_class_folders(tree, root, base, split=split) for base, split in ((train, "train"), (val, "val")) if base]
    beside = " and ".join(f"{base}/" for base in (train, val) if base)
    loose = [_outside(name) for name, _ in tree.files if "/" not in name and is_image(name)]
    unused = [Skipped(name, f"a folder beside {beside}", "unused_folder") for name in top if name not in (train, val)]
    return Scan(
        [entry for part in parts for entry in part.entries],
        [skipped for part in parts for skipped in part.skipped] + loose + unused,
        tuple(name for part in parts for name in part.empty),
        tuple(tree.bad),
    )


def _class_folders(tree: Tree, root: str, base: str | None, *, split: str | None) -> Scan:
    prefix = f"{base}/" if base else ""
    depth = prefix.count("/")
    labels = sorted({name.split("/")[depth] for name in tree.folders if name.startswith(prefix) and name != base})
    if not labels:
        folder = os.path.join(root, prefix).rstrip("/")
        loose = sum(name.startswith(prefix) and is_image(name) for name, _ in tree.files)
        if not loose:
            raise InputError(f"{folder} has no class folders; expected one folder of images per class")
        raise InputError(
            f"{folder} has no class folders, but {plural(loose, 'image')} of its own; expected one folder of images "
            "per class: if it is one of the classes, name the folder above it"
        )
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
            skipped.append(_outside(name))
        elif len(parts) > depth + 1:
            skipped.append(Skipped(name, unsupported_type(name), "unsupported_type"))
    return Scan(entries, skipped, tuple(f"{prefix}{label}" for label in labels if label not in filled), tuple(tree.bad))


def _outside(name: str) -> Skipped:
    return Skipped(name, "an image outside the class folders", "outside_class")
