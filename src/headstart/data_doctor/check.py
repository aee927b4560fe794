"""List and examine every file of a source: the usable images, and all findings that need no comparison of images."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from headstart.data.classes import refuse_nothing
from headstart.data.source import Source, same_name
from headstart.data.sources.columns import split_named
from headstart.data.sources.folders import ClassFolders, lay_out
from headstart.data_doctor.balance import Named, alike_names, folder_of, thin_classes
from headstart.data_doctor.examine import Good, examine
from headstart.data_doctor.findings import KEEP, Finding
from headstart.results import Census
from headstart.runtime.hardware import usable_cores
from headstart.wording import plural


@dataclass(frozen=True)
class Checked:
    """The images of a source. counts: usable images of each (split, class), zeros included."""

    source: Source
    num_files: int
    good: list[Good]
    findings: list[Finding]
    counts: Counter[tuple[str, str]]
    census: Census


def check_files(
    source: Source, *, num_threads: int | None = None, progress: Callable[[int], object] | None = None
) -> Checked:
    """Read, hash and decode every file of a source, and compare the classes with each other.

    num_threads: None for one per core; progress: called in threads with the number of files just done (1).
    Raises InputError if there is nothing to check. Whatever is in the files is a finding, not an error.
    """
    files, counts, findings = _survey(source)
    one_at_a_time = threading.RLock()

    def check(file: Named) -> tuple[Good | None, list[Finding]]:
        with ExitStack() as turn:
            result = examine(source, file, large=lambda: turn.enter_context(one_at_a_time))
        if progress is not None:
            progress(1)
        return result

    with ThreadPoolExecutor(num_threads or usable_cores()) as pool:
        results = list(pool.map(check, files))
    good = [image for image, _ in results if image is not None]
    findings += [finding for _, ours in results for finding in ours]
    counts.update((image.file.split, image.file.label) for image in good)
    findings += alike_names(files) + _compare_classes(counts) + thin_classes(counts)
    return Checked(source, len(files), good, findings, counts, _census(good))


def _survey(source: Source) -> tuple[list[Named], Counter[tuple[str, str]], list[Finding]]:
    """The files to check, zero for each (split, class), and the findings of the scan that training makes.

    Files of unsupported types in a folder are checked as well, as they may be images. Raises InputError if there is
    nothing to check."""
    findings: list[Finding] = []
    in_folders = isinstance(source, ClassFolders)
    if isinstance(source, ClassFolders):
        tree = source.tree()
        scan = lay_out(tree, source.root)
        findings += [_hidden(source.base / path, path, is_folder) for path, is_folder in tree.hidden]
    else:
        scan = source.scan()
        refuse_nothing(source, scan.entries, scan)
    files = [Named(entry.path, entry.split or "", entry.label) for entry in scan.entries]
    classes = {(file.split, file.label) for file in files} | {_class_of(path) for path in scan.empty}
    for skipped in (*scan.skipped, *scan.bad):
        if in_folders and skipped.kind == "unsupported_type":
            files.append(Named(skipped.path, "", ""))
        else:
            findings.append(Finding.of(skipped.kind, skipped.path, skipped.reason, KEEP))
    splits = {split for split, _ in classes}
    if len(splits & {"train", "val"}) == 1 and "" not in splits and not ("train" in splits and scan.has_test):
        has, lacks = ("train", "val") if "train" in splits else ("val", "train")
        findings.append(Finding.of("missing_split", has, f"there is {has} but no {lacks}", KEEP))
    return files, Counter(dict.fromkeys(sorted(classes), 0)), findings


def _class_of(path: str) -> tuple[str, str]:
    """(split, class) of a class folder such as train/ants, photos/train/ants or ants."""
    *above, label = path.split("/")
    split = split_named(above[-1]) if above else ""
    return (split if split in ("train", "val", "test") else "", same_name(label))


def _hidden(path: Path, name: str, is_folder: bool) -> Finding:
    if not is_folder:
        return Finding.of("hidden", name, "a hidden file", KEEP)
    count = sum(len(names) for _, _, names in os.walk(path))
    return Finding.of("hidden", name, f"a hidden folder of {plural(count, 'file')}", KEEP)


def _compare_classes(counts: Counter[tuple[str, str]]) -> list[Finding]:
    found = []
    splits = {split for split, _ in counts}
    for label in sorted({label for _, label in counts}):
        there = [split for split in sorted(splits) if (split, label) in counts]
        for split in there:
            if not counts[(split, label)]:
                found.append(Finding.of("empty_class", folder_of(split, label), "no usable image", KEEP))
        if there != ["test"] and len([split for split in there if split != "test"]) < len(splits - {"test"}):
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
