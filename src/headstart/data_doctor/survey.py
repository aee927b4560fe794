"""What a source holds before any image is read: the data doctor's list of files, and what the list alone shows to be wrong."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from headstart.data.classes import refuse_nothing
from headstart.data.samples import Source
from headstart.data.sources.folders import (
    EXTENSIONS,
    TRAIN_NAMES,
    VAL_NAMES,
    ClassFolders,
    check_is_folder,
    is_hidden,
    no_class_folders,
)
from headstart.data_doctor.balance import Named
from headstart.data_doctor.findings import KEEP, Finding


@dataclass
class Survey:
    """Files in the order of their names, (split, class) pairs, and findings."""

    files: list[Named] = field(default_factory=list)
    classes: list[tuple[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def survey(source: Source) -> Survey:
    """Raises InputError if there is nothing to look at."""
    return _of_folder(Path(source.root)) if isinstance(source, ClassFolders) else _of_scan(source)


def _of_scan(source: Source) -> Survey:
    """What any source says it has."""
    scan = source.scan()
    refuse_nothing(source, scan.entries, scan)
    found = Survey([Named(entry.path, entry.split or "", entry.label) for entry in scan.entries])
    found.classes = sorted({(file.split, file.label) for file in found.files})
    found.findings += [Finding.of("left_out", skipped.path, skipped.reason, KEEP) for skipped in scan.skipped]
    found.findings += [Finding.of("bad_name", skipped.path, skipped.reason, KEEP) for skipped in scan.bad]
    found.findings += [Finding.of("empty_class", name, "no image that can be used", KEEP) for name in scan.empty]
    parts = {file.split for file in found.files}
    if len(parts & {"train", "val"}) == 1 and "" not in parts:
        found.findings.append(_missing(*parts & {"train", "val"}))
    return found


def _missing(has: str) -> Finding:
    lacks = "val" if has == "train" else "train"
    return Finding.of("missing_split", has, f"{has} is there and {lacks} is not", KEEP)


def _of_folder(root: Path) -> Survey:
    check_is_folder(root)
    found = Survey()
    train, val = _named(root, TRAIN_NAMES), _named(root, VAL_NAMES)
    bases = [(path, split) for path, split in ((train, "train"), (val, "val")) if path is not None]
    if len(bases) == 1:
        found.findings.append(_missing("train" if train else "val"))
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
        raise no_class_folders(str(root), sum(finding.kind == "outside_class" for finding in found.findings))
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _named(root: Path, names: tuple[str, ...]) -> Path | None:
    """As lay_out of data/sources/folders.py finds train/ and val/: images alone make a folder of that name a class."""
    return next((path for path in _subfolders(root) if path.name.lower() in names and _subfolders(path)), None)


def _loose(found: Survey, root: Path, folder: Path) -> None:
    """What lies directly in a folder of class folders."""
    for entry in sorted(folder.iterdir()):
        path = entry.relative_to(root).as_posix()
        if is_hidden(entry.name):
            found.findings.append(_hidden_entry(entry, path))
        elif not entry.is_dir() and entry.suffix.lower() in EXTENSIONS:
            found.findings.append(Finding.of("outside_class", path, "in no class folder", KEEP))


def _walk(found: Survey, root: Path, folder: Path, *, split: str, label: str) -> None:
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
