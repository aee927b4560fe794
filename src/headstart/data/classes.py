"""Which classes are usable: each needs images to train on and images for validation."""

from collections import Counter
from collections.abc import Iterable, Sequence

from headstart.data.source import PARTS, Entry, Scan, Source, place_in, summarize
from headstart.errors import InputError

SPLITS = PARTS | {"test"}


def refuse_nothing(source: Source, entries: Sequence[Entry], scan: Scan) -> None:
    """Raise InputError, with what was left out, if no entry of a scan is used."""
    if not entries:
        splits = {entry.split for entry in scan.entries}
        if splits and not splits & SPLITS:
            found = " and ".join(repr(split) for split in sorted(map(str, splits))[:5])
            raise InputError(
                f"{source.root} has a split with the values {found}; expected train, val or test, or true and false in "
                "a column is_valid"
            )
        if splits == {"test"}:
            raise InputError(f"{source.root} has only a test set; add images to train on")
        why = [*scan.skipped, *scan.bad]
        because = f": {summarize(why)}" if why else ""
        raise InputError(f"{source.root} has no images with a class{because}; add some")


def lacking_classes(
    source: Source, entries: Sequence[Entry], read: Sequence[Entry], *, split_by_us: bool
) -> dict[str, str]:
    """Label -> the problem of the class. entries: all that are used; read: those of them that decode."""

    def per_split(entries: Iterable[Entry]) -> Counter[tuple[str | None, str]]:
        return Counter((None if split_by_us else entry.split, entry.label) for entry in entries)

    counts, wanted = per_split(read), per_split(entries)
    splits: list[str | None] = [None] if split_by_us else ["train", "val"]
    lacking: dict[str, str] = {}
    for label in sorted({label for _, label in wanted}):
        for split, other in zip(splits, reversed(splits), strict=True):
            have = counts[(split, label)]
            if not have and wanted[(split, label)]:
                place = place_in(source, split) if split else source.root
                lacking[label] = f"class {label!r} has no readable image in {place}; add some or remove the class"
            elif not have:
                lacking[label] = (
                    f"class {label!r} is in {other}/ but not in {split}/ of {source.root}; both need the same classes, "
                    "so add images or remove the class"
                )
            elif split is None and have < 2:
                lacking[label] = (
                    f"class {label!r} in {source.root} has a single image; at least two are needed, one for training "
                    "and one for validation"
                )
    return lacking


def classes_of_one_side(labels: Sequence[str], splits: Sequence[str]) -> dict[str, str]:
    """Label -> the problem of each class that has images in train alone or in val alone after a split."""
    counts = Counter(zip(labels, splits, strict=True))
    lacking = {}
    for label in sorted(set(labels)):
        have = {side: counts[(label, side)] for side in ("train", "val")}
        if not all(have.values()):
            side = max(have, key=lambda side: have[side])
            lacking[label] = (
                f"all {have[side]} images of class {label!r} are in {side} after the split (copies of a file, and "
                "images of one group, stay together); add other images, or choose another --data.val_fraction or "
                "--seed, fewer --data.folds or smaller groups"
            )
    return lacking


def refuse_or_leave_out(source: Source, lacking: dict[str, str], labels: set[str], *, skip: bool) -> None:
    """Raise InputError unless training can continue without the classes in `lacking`."""
    left = labels - lacking.keys()
    if lacking and (not skip or len(left) < 2):
        raise InputError(next(iter(lacking.values())))
    if len(left) < 2:
        raise InputError(
            f"{source.root} has a single class, {min(left)!r}; a classifier needs at least two; "
            "add images of another class"
        )
