"""Which image trains and which one measures: stratified, seeded, by groups; the same on every machine."""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from headstart.config import DataConfig
from headstart.data.samples import Entry, Source
from headstart.errors import InputError


def is_split_by_us(source: Source, entries: Sequence[Entry], data: DataConfig) -> bool:
    """Whether train and val are for us to choose. entries: those that take part.

    Raises InputError where the source's own split is to be taken and is not whole.
    """
    parts = {entry.split for entry in entries}
    anew = "have all split anew with --data.split stratified"
    if data.split != "folder" or parts == {None}:
        return True
    if None in parts:
        unsplit = next(entry.path for entry in entries if entry.split is None)
        raise InputError(
            f"{source.root} says of some images whether they train or measure and of others, such as {unsplit}, it does not; "
            f"name them alike, or {anew}"
        )
    if len(parts) == 1:
        (has,) = parts
        lacks = "val" if has == "train" else "train"
        raise InputError(f"{source.root} has {has} but no {lacks}; add {lacks} with the same classes, or {anew}")
    if data.group_column is not None:
        raise InputError(
            f"data.group_column {data.group_column!r} keeps images together where they are split anew, and {source.root} has "
            f"train and val; leave it null, or {anew}"
        )
    return False


def split_as_configured(entries: Sequence[Entry], contents: Sequence[str], data: DataConfig, *, seed: int) -> list[str]:
    """One of "train" or "val" per entry. Copies of one content stay together, and so do the images of one group."""
    return stratified_split(
        units_of(groups_of(entries, data.groups), contents),
        [entry.label for entry in entries],
        val_fraction=data.val_fraction,
        seed=seed,
        stable=data.split == "stable",
        folds=data.folds,
        fold=data.fold,
    )


def units_of(groups: Sequence[str], contents: Sequence[str]) -> list[str]:
    """What must stay on one side, by name, per image: images of one group ("" for none), copies of one content, and groups
    that share a copy. A unit is named by its first group in sorted order, or by its content."""
    if not any(groups):
        return list(contents)
    parent: dict[tuple[bool, str], tuple[bool, str]] = {}  # a key says whether it names a group

    def root(key: tuple[bool, str]) -> tuple[bool, str]:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = key = parent[above]
        return key

    keys = [(bool(group), group or content) for group, content in zip(groups, contents, strict=True)]
    for key, content in zip(keys, contents, strict=True):
        # the smaller name stays; a content (False) gives way to a group
        one, other = sorted((root(key), root((False, content))), key=lambda found: (not found[0], found[1]))
        parent[other] = one
    return [root(key)[1] for key in keys]


def stratified_split(
    units: Sequence[str],
    strata: Sequence[str],
    *,
    val_fraction: float,
    seed: int,
    stable: bool = False,
    folds: int = 0,
    fold: int = 0,
) -> list[str]:
    """One of "train" or "val" per image, in the order given. units: images of the same unit stay together; a unit
    belongs to the stratum of most of its images.

    Inside a stratum the units are ordered by a hash of (seed, unit), so neither the order of the input nor the platform
    matters; the first ones measure. Together they are round(val_fraction * n) images, shared out over the strata by
    largest remainder, or about that where units are large. stable: a unit measures if its hash lies below val_fraction,
    whatever else there is; so the share is that only on average, a stratum may lie on one side whole, and no unit changes
    sides when others come or go. folds: cut into so many parts of equal size instead, of which number `fold` measures.
    Else a stratum with two or more units is represented on both sides.
    Raises ValueError if val_fraction is not between 0 and 1.
    """
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f"data.val_fraction is {val_fraction}; it must lie between 0 and 1, for example 0.25")
    images: dict[str, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        images[unit].append(index)
    members: dict[str, list[str]] = defaultdict(list)
    for unit, indices in images.items():
        votes = Counter(strata[index] for index in indices)
        members[min(votes, key=lambda stratum: (-votes[stratum], stratum))].append(unit)
    sizes = {stratum: sum(len(images[unit]) for unit in group) for stratum, group in members.items()}
    quota = _quota(sizes, val_fraction=val_fraction)

    split = ["train"] * len(units)
    filled = [0] * folds  # images in each fold, over all strata
    for stratum, group in sorted(members.items()):
        group.sort(key=lambda unit: _rank(seed, unit))
        if stable:
            held = [unit for unit in group if _measures(_share(seed, unit), val_fraction, folds, fold)]
        elif folds:
            held = _fold(group, images, filled, fold=fold)
        else:
            held, taken = [], 0
            for unit in group[: len(group) - 1]:
                if taken >= max(quota[stratum], 1):
                    break
                held.append(unit)
                taken += len(images[unit])
        for unit in held:
            for index in images[unit]:
                split[index] = "val"
    return split


def groups_of(entries: Sequence[Entry], groups: str) -> list[str]:
    """The group of each entry, "" for an image that belongs to none. groups: "" (the source's own), a regular expression
    with a group, looked for in the path, or a .csv file with the columns path and group. Raises InputError."""
    if not groups:
        return [entry.group for entry in entries]
    if groups.endswith(".csv"):
        found = _listed(groups)
        named = [found.get(entry.path, "") for entry in entries]
        what = "names none of the images; its column path must be relative to data.root"
    else:
        try:
            pattern = re.compile(groups)
        except re.error as error:
            raise InputError(
                f"data.groups {groups!r} is no regular expression ({error}), nor the name of a .csv file"
            ) from None
        if pattern.groups != 1:
            raise InputError(
                f"data.groups {groups!r} has {pattern.groups} groups in parentheses; it needs one, such as '(patient\\d+)'"
            )
        matches = [pattern.search(entry.path) for entry in entries]
        named = [(match[1] or "") if match else "" for match in matches]
        what = f"matches no image, the first one is {entries[0].path}" if entries else "matches no image"
    if not any(named):
        raise InputError(f"data.groups {groups!r} {what}")
    return [f"group {name}" if name else "" for name in named]


def _listed(file: str) -> dict[str, str]:
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if not {"path", "group"} <= set(rows.fieldnames or ()):
                raise InputError(
                    f"data.groups {file} has the columns {', '.join(rows.fieldnames or ())}; it needs path and group"
                )
            return {row["path"]: row["group"] or "" for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.groups {file}: {error}") from None


def _quota(sizes: dict[str, int], *, val_fraction: float) -> dict[str, int]:
    wanted = {stratum: val_fraction * size for stratum, size in sizes.items()}
    quota = {stratum: int(share) for stratum, share in wanted.items()}
    left_over = round(val_fraction * sum(sizes.values())) - sum(quota.values())
    by_remainder = sorted(wanted, key=lambda stratum: (quota[stratum] - wanted[stratum], stratum))
    for stratum in by_remainder[: max(left_over, 0)]:
        quota[stratum] += 1
    return quota


def _fold(group: Sequence[str], images: dict[str, list[int]], filled: list[int], *, fold: int) -> list[str]:
    """The units of one fold. Each goes to the fold with the fewest images of its stratum so far, and of all strata where
    several have as few. filled: images in each fold so far, counted on."""
    ours = [0] * len(filled)
    held = []
    for unit in group:
        place = min(range(len(filled)), key=lambda number: (ours[number], filled[number]))
        ours[place] += len(images[unit])
        filled[place] += len(images[unit])
        if place == fold:
            held.append(unit)
    return held


def _measures(share: float, val_fraction: float, folds: int, fold: int) -> bool:
    return int(share * folds) == fold if folds else share < val_fraction


def _rank(seed: int, unit: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{unit}".encode(), digest_size=16).digest()


def _share(seed: int, unit: str) -> float:
    """In [0, 1), in the order of the ranks."""
    return int.from_bytes(_rank(seed, unit)[:6], "big") / 2**48
