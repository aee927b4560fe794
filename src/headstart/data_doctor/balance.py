"""What a table of samples gives away without a look at the pixels: copies, thin classes, imbalance."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headstart.data_doctor.findings import DROP, KEEP, Finding
from headstart.wording import listed

NEAR_EMPTY = 10  # images of a class in a part; below that neither training nor measuring it means much
IMBALANCE = 5.0  # training images of the largest class over those of the smallest
PLACEHOLDER_NAMES = 5  # so many files of one content are no accident of copying


@dataclass(frozen=True)
class Named:
    """An image that can be used. split: "train", "val", or "" where the folder has none."""

    path: str
    split: str
    label: str


def copies(files: Iterable[tuple[str, Named]]) -> list[Finding]:
    """Exact duplicates among (content, file): within a part, across splits, across classes, and placeholders."""
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
        # the measured images stay what they were
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
    """Near-empty classes and imbalance, of (split, label) -> number of usable images. Empty ones are not for here."""
    found = []
    for (split, label), count in sorted(counts.items()):
        if 0 < count < NEAR_EMPTY:
            noun = "image" if count == 1 else "images"
            found.append(Finding.of("near_empty_class", _folder(split, label), f"{count} {noun}", KEEP))
    training = {label: count for (split, label), count in counts.items() if split in ("train", "") and count}
    if training:
        most, least = max(training, key=lambda x: (training[x], x)), min(training, key=lambda x: (training[x], x))
        ratio = training[most] / training[least]
        if ratio >= IMBALANCE:
            split = "train" if any(split == "train" for split, _ in counts) else ""
            message = f"{most} has {ratio:.1f} times the images of {least} ({training[most]} and {training[least]})"
            paths = (_folder(split, most), _folder(split, least))
            found.append(Finding("imbalance", paths, message, (KEEP, KEEP)))
    return found


def _folder(split: str, label: str) -> str:
    return f"{split}/{label}" if split else label
