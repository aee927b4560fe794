"""Split images into training and validation: stratified, seeded, by groups; the same on every machine."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path

from headstart.config import GROUP_TABLES, DataConfig
from headstart.data.listed_files import listed_name
from headstart.data.source import Entry, Scan, Source
from headstart.data.text_tables import TextTable
from headstart.errors import InputError


def is_split_by_us(source: Source, entries: Sequence[Entry], data: DataConfig, scan: Scan) -> bool:
    """Whether the images still have to be split. entries: those of `scan` that are used. A source with train and test
    has its validation images in train.

    Raises InputError if the source's own split has to be used and is incomplete.
    """
    parts = {entry.split for entry in entries}
    resplit = "split all images with --data.split stratified"
    if data.split != "folder" or parts == {None} or (parts == {"train"} and scan.has_test):
        return True
    if None in parts:
        unsplit = next(entry.path for entry in entries if entry.split is None)
        raise InputError(
            f"{source.root} assigns only some images to train or val, for example not {unsplit}; assign all of them, "
            f"or {resplit}"
        )
    if len(parts) == 1:
        (has,) = parts
        lacks = "val" if has == "train" else "train"
        raise InputError(f"{source.root} has {has} but no {lacks}; add {lacks} with the same classes, or {resplit}")
    if data.group_column is not None:
        raise InputError(
            f"data.group_column {data.group_column!r} keeps images together in a new split, but {source.root} has "
            f"train and val; leave it null, or {resplit}"
        )
    return False


def units_of(groups: Sequence[str], contents: Sequence[str]) -> list[str]:
    """The unit of each image, by name; a unit stays on one side: images of one group ("" for none), copies of one
    content, and groups that share a copy. It is named by its first group in sorted order, or by its content."""
    if not any(groups):
        return list(contents)
    names = [(False, group) for group in sorted({*groups} - {""})] + [(True, sha256) for sha256 in sorted({*contents})]
    index = {name: number for number, name in enumerate(names)}
    pairs = [(index[(False, g)], index[(True, c)]) for g, c in zip(groups, contents, strict=True) if g]
    first = components(len(names), pairs)
    return [names[first[index[(True, content)]]][1] for content in contents]


def components(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `count` items, the first item that it is connected to by pairs, directly or not (union-find)."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(item) for item in range(count)]


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
    """ "train" or "val" for each image. units: images of one unit stay together; a unit belongs to the stratum of
    most of its images.

    Within a stratum the units are ordered by a hash of (seed, unit), so neither the order of the input nor the platform
    matters, and the first ones are held out: round(val_fraction * n) images in all, distributed over the strata by
    largest remainder, or about that many where units are large. A stratum of two or more units is on both sides.
    stable: a unit is held out if its hash lies below val_fraction. No unit changes sides when others are added or
    removed, but the fraction holds only on average, and a stratum may lie on one side.
    folds: K for K-fold cross-validation, folds of equal size; fold number `fold` is held out.
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
            shares = [int.from_bytes(_rank(seed, unit)[:6], "big") / 2**48 for unit in group]  # in [0, 1), as the ranks
            is_held = [int(share * folds) == fold if folds else share < val_fraction for share in shares]
            held = list(compress(group, is_held))
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


def describe_split(data: DataConfig, *, seed: int, of: str = "") -> str:
    """A new split in words: '20% held out by headstart (stratified, seed 0)'. of: the part that is split, such as
    train."""
    share = f"fold {data.fold} of {data.folds}" if data.folds else f"{100 * data.val_fraction:g}%"
    share += f" of {of}" if of else ""
    kind = "stable" if data.split == "stable" else "stratified"
    return f"{share} held out by headstart ({kind}, seed {seed})"


def groups_of(entries: Sequence[Entry], groups: str) -> list[str]:
    """The group of each entry, "" for none. groups: "" (the source's own), a regular expression with one group,
    searched in the path, or a .csv or .tsv file with the columns path and group. Raises InputError."""
    if not groups:
        return [entry.group for entry in entries]
    if groups.lower().endswith(GROUP_TABLES):
        found = _listed(groups)
        if not found:  # as `data check --out` writes it if there are no copies
            return [""] * len(entries)
        paths = {entry.path for entry in entries}
        found = {listed_name(path, paths): group for path, group in found.items()}
        named = [found.get(entry.path, "") for entry in entries]
        what = f"names none of the images; write paths relative to data.root, not {next(iter(found))!r}"
    else:
        try:
            pattern = re.compile(groups)
        except re.error as error:
            raise InputError(
                f"data.groups {groups!r} is neither a regular expression ({error}) nor the name of a .csv or .tsv file"
            ) from None
        if pattern.groups != 1:
            raise InputError(
                f"data.groups {groups!r} has {pattern.groups} groups in parentheses; it needs one, such as "
                "'(patient\\d+)'"
            )
        matches = [pattern.search(entry.path) for entry in entries]
        named = [(match[1] or "") if match else "" for match in matches]
        what = f"matches no image, the first one is {entries[0].path}" if entries else "matches no image"
    if not any(named):
        raise InputError(f"data.groups {groups!r} {what}")
    return [f"group {name}" if name else "" for name in named]


def _listed(file: str) -> dict[str, str]:
    """Path -> group."""
    needed = ("path", "group")
    table = TextTable.open(Path(file), fits=set(needed).issubset)
    if not {*needed} <= {*table.columns}:
        has = ", ".join(filter(None, table.columns)) or "none"
        raise InputError(f"data.groups {file} needs the columns path and group; its columns are {has}")
    return {row.values["path"]: row.values["group"].strip() for row in table.rows(needed)}


def _quota(sizes: dict[str, int], *, val_fraction: float) -> dict[str, int]:
    wanted = {stratum: val_fraction * size for stratum, size in sizes.items()}
    quota = {stratum: int(share) for stratum, share in wanted.items()}
    left_over = round(val_fraction * sum(sizes.values())) - sum(quota.values())
    by_remainder = sorted(wanted, key=lambda stratum: (quota[stratum] - wanted[stratum], stratum))
    for stratum in by_remainder[: max(left_over, 0)]:
        quota[stratum] += 1
    return quota


def _fold(group: Sequence[str], images: dict[str, list[int]], filled: list[int], *, fold: int) -> list[str]:
    """The units of one fold. Each is added to the fold with the fewest images of its stratum so far; ties go to the
    fold with the fewest images of all strata. filled: images in each fold, updated."""
    ours = [0] * len(filled)
    held = []
    for unit in group:
        place = min(range(len(filled)), key=lambda number: (ours[number], filled[number]))
        ours[place] += len(images[unit])
        filled[place] += len(images[unit])
        if place == fold:
            held.append(unit)
    return held


def _rank(seed: int, unit: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{unit}".encode(), digest_size=16).digest()
