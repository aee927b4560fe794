"""Which classes can be trained and measured: each needs images to train on and images to measure."""

from collections import Counter
from collections.abc import Iterable, Sequence

from headstart.data.samples import Entry, Scan, Source, summarize
from headstart.errors import InputError


def refuse_nothing(source: Source, entries: Sequence[Entry], scan: Scan) -> None:
    """Raise InputError if no entry of a scan takes part, and say what was left out."""
    if not entries:
        why = [*scan.skipped, *scan.bad]
        because = f": {summarize(why)}" if why else ""
        raise InputError(f"{source.root} has no image of a class to train on or to measure{because}")


def lacking_classes(
    source: Source, entries: Sequence[Entry], read: Sequence[Entry], *, split_by_us: bool
) -> dict[str, str]:
    """Label -> what is wrong with the class. entries: all that take part; read: those of them that can be used."""

    def parts_of(entries: Iterable[Entry]) -> Counter[tuple[str | None, str]]:
        return Counter((None if split_by_us else entry.split, entry.label) for entry in entries)

    counts, wanted = parts_of(read), parts_of(entries)
    parts: list[str | None] = [None] if split_by_us else ["train", "val"]
    lacking: dict[str, str] = {}
    for label in sorted({label for _, label in wanted}):
        for part, other in zip(parts, reversed(parts), strict=True):
            have = counts[(part, label)]
            if not have and wanted[(part, label)]:
                place = place_in(source, part) if part else source.root
                lacking[label] = f"class {label!r} has no readable image in {place}; add some or remove the class"
            elif not have:
                lacking[label] = (
                    f"class {label!r} is in {other}/ but not in {part}/ of {source.root}; both need the same classes"
                )
            elif part is None and have < 2:
                lacking[label] = (
                    f"class {label!r} in {source.root} has a single image; at least two are needed, one to train and one to measure"
                )
    return lacking


def classes_of_one_side(labels: Sequence[str], splits: Sequence[str]) -> dict[str, str]:
    """Label -> what is wrong, of each class that a split leaves without an image to train on or without one to measure."""
    counts = Counter(zip(labels, splits, strict=True))
    lacking = {}
    for label in sorted(set(labels)):
        have = {side: counts[(label, side)] for side in ("train", "val")}
        if not all(have.values()):
            side = max(have, key=lambda side: have[side])
            lacking[label] = (
                f"class {label!r} lies in {side} with all of its {have[side]} images after the split (copies of a file, and "
                "images of one group, stay together); add other images, or choose another --data.val_fraction, --seed, fewer --data.folds or smaller groups"
            )
    return lacking


def refuse_or_leave_out(source: Source, lacking: dict[str, str], labels: set[str], *, skip: bool) -> None:
    """Raise InputError unless the classes that lack nothing can be gone on with."""
    left = labels - lacking.keys()
    if lacking and (not skip or len(left) < 2):
        raise InputError(next(iter(lacking.values())))
    if len(left) < 2:
        raise InputError(f"{source.root} has a single class, {min(left)!r}; a classifier needs at least two")


def place_in(source: Source, path: str) -> str:
    return f"{source.root.rstrip('/')}/{path}"
