"""Images in class folders: train/, val/ and test/ with class folders in them, or class folders alone."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from headstart.data.folder_walk import is_image, unsupported_type, walk
from headstart.data.source import Entry, Scan, Skipped, Source, same_name, summarize
from headstart.data.sources.columns import is_text, split_named
from headstart.errors import InputError
from headstart.files import read_regular, reason_of
from headstart.wording import plural

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
        try:
            with os.scandir(self.base) as entries:
                empty = not any(entry.is_dir() for entry in entries)
        except OSError as error:
            raise InputError(f"{self.root}: {reason_of(error)}; make the folder readable") from None
        if empty:
            lay_out(self.tree(), self.root)  # raises

    def tree(self) -> "Tree":
        folder, tree = Path(self.root), Tree()
        if not folder.is_dir():
            self.check()
        for found in walk(folder, stamps=True):
            if found.is_hidden:
                tree.hidden.append((found.path, found.kind == "hidden folder"))
            elif not is_text(found.path):
                tree.bad.append(bad_name(found.path, is_folder="file" not in found.kind and found.kind != "image"))
            elif found.kind == "folder":
                tree.folders.append(found.path)
            elif found.kind == "passed over":
                tree.passed_over.append(Skipped(f"{found.path}/", found.reason, "unused_folder"))
            elif found.kind == "unreadable":
                tree.bad.append(Skipped(f"{found.path}/", found.reason, "unreadable"))
            else:
                tree.files.append((found.path, found.stamp))
        return tree

    def scan(self) -> Scan:
        return lay_out(self.tree(), self.root)

    def read(self, path: str) -> bytes:
        return read_regular(self.base / path)


@dataclass
class Tree:
    """What lies below a root, by posix names relative to it, sorted: files with their stamps; hidden (path, is a
    folder). bad: files and folders that cannot be read; passed_over: folders that hold no images of the data."""

    files: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: list[tuple[str, bool]] = field(default_factory=list)
    bad: list[Skipped] = field(default_factory=list)
    passed_over: list[Skipped] = field(default_factory=list)


def lay_out(tree: Tree, root: str) -> Scan:
    """Splits and labels by the names of folders. Raises InputError for a tree without class folders.

    A folder named like a split is one if it holds folders itself; with images alone it is a class. test/ is one beside
    train/ or val/, alone, or beside class folders with at least one of the same classes in it."""
    inside: dict[str, set[str]] = {name: set() for name in sorted(tree.folders) if "/" not in name}
    for name in tree.folders:
        if "/" in name:
            inside[name.split("/")[0]].add(same_name(name.split("/")[1]))
    bases = {split_named(name): name for name in reversed(inside) if inside[name]}
    train, val, test = (bases.get(split) for split in ("train", "val", "test"))
    if test and not train and not val and len(inside) > 1 and not inside[test] & set(map(same_name, inside)):
        test = None  # a class whose images lie in folders of their own
    named = {base: split for base, split in ((train, "train"), (val, "val"), (test, "test")) if base}
    parts = [_class_folders(tree, root, base, split=split) for base, split in named.items()]
    if not train and not val and (not test or len(inside) > 1):
        parts.insert(0, _class_folders(tree, root, None, split=None, without=test))
        unused, loose = [], []
    else:
        beside = " and ".join(f"{base}/" for base in named)
        loose = [_outside(name) for name, _ in tree.files if "/" not in name and is_image(name)]
        kinds = {
            name: "a test set without class folders" if split_named(name) == "test" else "a folder" for name in inside
        }
        unused = [Skipped(n, f"{kinds[n]} beside {beside}", "unused_folder") for n in inside if n not in named]
    return Scan(
        [entry for part in parts for entry in part.entries],
        [skipped for part in parts for skipped in part.skipped] + loose + unused + tree.passed_over,
        tuple(name for part in parts for name in part.empty),
        tuple(dict.fromkeys(tree.bad)),
        has_test=bool(test) or any(split_named(one.path) == "test" for one in unused),
    )


def _class_folders(tree: Tree, root: str, base: str | None, *, split: str | None, without: str | None = None) -> Scan:
    """without: a folder beside the class folders that is none."""
    prefix = f"{base}/" if base else ""
    depth = prefix.count("/")
    labels = sorted({name.split("/")[depth] for name in tree.folders if name.startswith(prefix) and name != base})
    labels = [label for label in labels if label != without]
    if not labels:
        folder = os.path.join(root, prefix).rstrip("/")
        loose = sum(name.startswith(prefix) and is_image(name) for name, _ in tree.files)
        if not loose:
            missed = [*tree.bad, *tree.passed_over]
            why = f"; not searched: {summarize(missed)}" if missed else ""
            raise InputError(f"{folder} has no class folders; expected one folder of images per class{why}")
        raise InputError(
            f"{folder} has no class folders, but {plural(loose, 'image')} of its own; expected one folder of images "
            "per class: if it is one of the classes, name the folder above it"
        )
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    filled = {same_name(one.path.split("/")[depth]) for one in tree.passed_over if one.path.startswith(prefix)}
    for name, stamp in tree.files:
        parts = name.split("/")
        if not name.startswith(prefix) or (without and parts[0] == without):
            continue
        if is_image(name) and len(parts) > depth + 1:
            entries.append(Entry(name, parts[depth], split, stamp=stamp))
            filled.add(same_name(parts[depth]))
        elif is_image(name):
            skipped.append(_outside(name))
        elif len(parts) > depth + 1:
            skipped.append(Skipped(name, unsupported_type(name), "unsupported_type"))
    empty = [f"{prefix}{label}" for label in labels if same_name(label) not in filled]
    if split == "test":  # it takes no part in training, which refuses empty classes
        skipped += [Skipped(name, "a class without images") for name in empty]
        empty = []
    return Scan(entries, skipped, tuple(empty))


def bad_name(path: str, *, is_folder: bool) -> Skipped:
    """Of a file or folder whose name is not UTF-8, as surrogates: its topmost folder of such a name."""
    parts = path.split("/")
    number = next(number for number, part in enumerate(parts, start=1) if not is_text(part))
    folder = "/" if is_folder or number < len(parts) else ""
    name = ascii("/".join(parts[:number]))[1:-1]
    return Skipped(
        f"{name}{folder}", f"the name of this {'folder' if folder else 'file'} is not valid UTF-8", "bad_name"
    )


def _outside(name: str) -> Skipped:
    return Skipped(name, "an image outside the class folders", "outside_class")
