"""What a source holds before any image is read: the list of files to check, and the findings of the list itself."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from headstart.data.classes import refuse_nothing
from headstart.data.source import Source
from headstart.data.sources.columns import split_named
from headstart.data.sources.folders import ClassFolders, lay_out
from headstart.data_doctor.balance import Named
from headstart.data_doctor.findings import KEEP, Finding
from headstart.wording import counted


@dataclass
class Survey:
    """Files sorted by name, (split, class) pairs, and findings."""

    files: list[Named] = field(default_factory=list)
    classes: list[tuple[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def survey(source: Source) -> Survey:
    """The scan that training makes, with everything that it leaves out. In a folder, files of unsupported types are in
    `files` as well, as they may be images. Raises InputError if there is nothing to check."""
    found = Survey()
    if isinstance(source, ClassFolders):
        tree = source.tree()
        scan = lay_out(tree, source.root)
        found.findings += [_hidden(source.base / path, path, is_folder) for path, is_folder in tree.hidden]
    else:
        scan = source.scan()
        refuse_nothing(source, scan.entries, scan)
    found.files = [Named(entry.path, entry.split or "", entry.label) for entry in scan.entries]
    empty = {_class_of(path) for path in scan.empty}
    found.classes = sorted({(file.split, file.label) for file in found.files} | empty)
    for skipped in (*scan.skipped, *scan.bad):
        if isinstance(source, ClassFolders) and skipped.kind == "unsupported_type":
            found.files.append(Named(skipped.path, "", ""))
        else:
            found.findings.append(Finding.of(skipped.kind, skipped.path, skipped.reason, KEEP))
    parts = {split for split, _ in found.classes}
    if len(parts & {"train", "val"}) == 1 and "" not in parts:
        (has,) = parts & {"train", "val"}
        lacks = "val" if has == "train" else "train"
        found.findings.append(Finding.of("missing_split", has, f"there is {has} but no {lacks}", KEEP))
    return found


def _class_of(path: str) -> tuple[str, str]:
    """(split, class) of a class folder such as train/ants, photos/train/ants or ants."""
    *above, label = path.split("/")
    split = split_named(above[-1]) if above else ""
    return (split if split in ("train", "val") else "", label)


def _hidden(path: Path, name: str, is_folder: bool) -> Finding:
    if not is_folder:
        return Finding.of("hidden", name, "a hidden file", KEEP)
    count = sum(len(names) for _, _, names in os.walk(path))
    return Finding.of("hidden", name, f"a hidden folder of {counted(count, 'file')}", KEEP)
