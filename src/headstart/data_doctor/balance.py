"""Findings of a table of samples, without its pixels: copies, nearly empty classes, imbalance."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headstart.data.source import same_name
from headstart.data_doctor.findings import DROP, KEEP, Finding
from headstart.wording import listed, plural

NEAR_EMPTY = 10  # images of a class in a split; with fewer neither training nor an accuracy means much
IMBALANCE = 5.0  # training images of the largest class over those of the smallest
PLACEHOLDER_NAMES = 5  # as many files of one content are not an accident of copying


@dataclass(frozen=True)
class Named:
    """An image. split: "train", "val", or "" where the data have none."""

    path: str
    split: str
    label: str


def copies(files: Iterable[tuple[str, Named]]) -> list[Finding]:
    """Exact duplicates among (content, file): within a split, across splits, across classes, and placeholders."""
    by_content: dict[str, list[Named]] = defaultdict(list)
    for sha256, file in files:
        by_content[sha256].append(file)
    groups = [sorted(group, key=lambda f: f.path) for group in by_content.values() if len(group) > 1]
    found = []
    for group in sorted(groups, key=lambda group: group[0].path):
        if len(group) >= PLACEHOLDER_NAMES:
            message = f"{len(group)} files have the same content"
            found.append(Finding("placeholder", tuple(f.path for f in group), message, (DROP,) * len(group)))
        else:
            found += scoped("duplicate", group, "the same content")
    return found


def scoped(kind: str, group: Sequence[Named], what: str) -> list[Finding]:
    """The findings of a group of (near-)duplicates: `kind`_across_splits, `kind`_across_classes, or `kind`."""
    paths = tuple(f.path for f in group)
    splits, labels = sorted({f.split for f in group}), sorted({f.label for f in group})
    exact = kind == "duplicate"
    found = []
    if len(splits) > 1:
        # the validation set stays the same
        drop = tuple(DROP if f.split == "train" else KEEP for f in group)
        found.append(Finding(f"{kind}_across_splits", paths, f"{what} in {' and '.join(splits)}", drop))
    if len(labels) > 1:
        message = f"{what} under the labels {listed(labels)}"
        found.append(Finding(f"{kind}_across_classes", paths, message, (DROP if exact else KEEP,) * len(group)))
    if not found:
        rest = DROP if exact else KEEP
        found.append(Finding(kind, paths, f"{what}, {len(group)} times", (KEEP, *[rest] * (len(group) - 1))))
    return found


def thin_classes(counts: Counter[tuple[str, str]]) -> list[Finding]:
    """Nearly empty classes and imbalance. counts: usable images of each (split, label); empty classes are ignored."""
    found = []
    for (split, label), count in sorted(counts.items()):
        if 0 < count < NEAR_EMPTY and split != "test":
            found.append(Finding.of("near_empty_class", folder_of(split, label), plural(count, "image"), KEEP))
    training = {label: count for (split, label), count in counts.items() if split in ("train", "") and count}
    if training:
        most, least = max(training, key=lambda x: (training[x], x)), min(training, key=lambda x: (training[x], x))
        ratio = training[most] / training[least]
        if ratio >= IMBALANCE:
            split = "train" if any(split == "train" for split, _ in counts) else ""
            message = f"{most} has {ratio:.1f} times the images of {least} ({training[most]} and {training[least]})"
            paths = (folder_of(split, most), folder_of(split, least))
            found.append(Finding("imbalance", paths, message, (KEEP, KEEP)))
    return found


def alike_names(files: Iterable[Named]) -> list[Finding]:
    """Names of classes, and of class folders, that differ only in case or white space."""
    spellings: dict[str, set[tuple[str, str]]] = defaultdict(set)  # (class, name)
    for folder, label in {(file.path.rpartition("/")[0], file.label) for file in files if file.label}:
        names = [part for part in folder.split("/") if same_name(part) == label]
        key = "".join(label.casefold().split())
        spellings[key] |= {(label, unicodedata.normalize("NFC", name)) for name in names or [label]}
    found = []
    for group in sorted(map(sorted, spellings.values())):
        if len(group) > 1:
            what = "are one class" if len({label for label, _ in group}) == 1 else "differ only in case or white space"
            message = f"{listed([repr(name) for _, name in group])} {what}"
            found.append(Finding("alike_names", tuple(n for _, n in group), message, (KEEP,) * len(group)))
    return found


def folder_of(split: str, label: str) -> str:
    return f"{split}/{label}" if split else label
