"""Build the manifest: scan a source, hash and decode every image, assign the splits."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

from PIL import Image

from headstart.config import DataConfig
from headstart.data.classes import classes_of_one_side, lacking_classes, refuse_nothing, refuse_or_leave_out
from headstart.data.decode import decode
from headstart.data.limit import limit_images
from headstart.data.read_images import ReadImage, read_images
from headstart.data.samples import Manifest, Sample, Samples
from headstart.data.source import PARTS, Entry, Scan, Skipped, Source, place_in, same_name, summarize
from headstart.data.splits import describe_split, groups_of, is_split_by_us, stratified_split, units_of
from headstart.errors import InputError
from headstart.wording import plural

if TYPE_CHECKING:
    from headstart.data.transforms import PixelCache


def build_manifest(
    source: Source,
    data: DataConfig,
    *,
    seed: int,
    num_threads: int | None = None,
    known: Callable[[str], bool] | None = None,
    cache: "PixelCache | None" = None,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> Manifest:
    """Scan the source, decode everything that is used once, split as `data` specifies. With data.limit, all images are
    hashed and only the chosen ones are decoded. The other arguments are those of read_images.

    Raises InputError for data that cannot be trained on (missing, one class, an empty class, classes that differ
    between train and val) and for files that cannot be decoded. If data.on_bad_file is "skip", bad files, empty
    classes and classes of one side alone are left out and listed instead.
    """
    reading = {"num_threads": num_threads, "known": known, "cache": cache, "decoder": decoder}
    usable = _usable(source, data, **reading)
    scan, images, lacking, bad = usable.scan, usable.images, dict(usable.lacking), list(usable.bad)
    splits = [image.entry.split or "" for image in images]
    if usable.split_by_us:
        images, splits, one_sided = _split(source, images, data, seed=seed)
        lacking |= one_sided
    unread: list[Skipped] = []
    if data.limit is not None:
        images, splits, unread = limit_images(source, images, splits, data.limit, val_too=usable.split_by_us)
        images, splits, unusable = _decoded(source, usable, images, splits, data, **reading)
        bad += unusable
    left_out = [Skipped(name, "a class without images") for name in scan.empty]
    left_out += [Skipped(label, f"{reason.split(';')[0]}: left out") for label, reason in lacking.items()]
    unused = Counter(entry.split for entry in scan.entries if entry.split not in PARTS and entry.split != "test")
    left_out += [
        Skipped(f"split {split!r}", f"{plural(n, 'image')}, not used in training") for split, n in unused.items()
    ]
    classes = tuple(sorted({image.entry.label for image in images}))
    samples = samples_of(source, images, splits)
    there = {entry.split for entry in scan.entries}
    split_by = "train and val are those of the source"
    if usable.split_by_us:
        split_by = describe_split(data, seed=seed, of="train" if "train" in there and "val" not in there else "")
    skipped = tuple([*scan.skipped, *left_out, *unread, *bad])
    trained = {same_name(name) for name in classes}
    return Manifest(
        source,
        classes,
        samples,
        skipped,
        split_by,
        has_test=scan.has_test,
        num_test=scan.num_test,
        only_in_test=tuple(sorted({entry.label for entry in scan.entries if entry.split == "test"} - trained)),
    )


def check_splits(
    source: Source,
    recipes: Mapping[str, tuple[DataConfig, int]],
    *,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> None:
    """Raise InputError unless build_manifest would accept every (data, seed) of one source, with the same classes.

    They differ in the seed and the fold alone, so the source is read once. Messages begin with the name of the
    recipe."""
    usable = _usable(source, next(iter(recipes.values()))[0], decoder=decoder)
    if not usable.split_by_us:
        return
    left_out: dict[str, str] = {}
    for number, (name, (data, seed)) in enumerate(recipes.items()):
        try:
            _, _, one_sided = _split(source, usable.images, data, seed=seed)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        if number == 0:
            left_out = one_sided
        if differing := sorted(one_sided.keys() ^ left_out.keys()):
            reason = (one_sided | left_out)[differing[0]]
            raise InputError(f"{reason}; {name} and {next(iter(recipes))} would not have the same classes")


def refusals(source: Source, data: DataConfig, sha256: Mapping[str, str], *, seed: int) -> dict[str, str]:
    """All reasons for which build_manifest refuses the images, unreadable files and empty folders aside: by class, ""
    for all of them together. sha256: by path, of the images that decode."""
    data = replace(data, on_bad_file="skip")

    def read(_: Source, scan: Scan, *, wanted: Callable[[Entry], bool], **__: Any) -> tuple[list[ReadImage], list[Any]]:
        return [ReadImage(e, sha256[e.path]) for e in scan.entries if wanted(e) and e.path in sha256], []

    try:
        usable = _usable(source, data, read=read)
        one_sided = _split(source, usable.images, data, seed=seed)[2] if usable.split_by_us else {}
    except InputError as error:
        return {"": str(error)}
    return usable.lacking | one_sided


@dataclass(frozen=True)
class _Usable:
    """lacking: label -> the problem of a class that is left out; bad: files that cannot be decoded; split_by_us:
    whether the images still have to be split into train and val."""

    scan: Scan
    images: list[ReadImage]
    lacking: dict[str, str]
    bad: list[Skipped]
    split_by_us: bool


def _usable(source: Source, data: DataConfig, *, read: Any = read_images, **reading: Any) -> _Usable:
    """The images of train, val or no split that decode and belong to a complete class. reading: for `read`."""
    scan, skip = source.scan(), data.on_bad_file == "skip"
    if scan.empty and not skip:
        raise InputError(f"class folder {place_in(source, scan.empty[0])} contains no images; add some or remove it")
    entries = [entry for entry in scan.entries if entry.split in PARTS]
    refuse_nothing(source, entries, scan)
    refuse_or_skip(source, [one for one in scan.bad if one.is_folder], on_bad_file=data.on_bad_file)
    by_us = is_split_by_us(source, entries, data, scan)
    if data.limit is not None:
        reading = {"num_threads": reading.get("num_threads"), "only_hash": True}
    images, bad = read(source, scan, wanted=lambda entry: entry.split in PARTS, rescan=data.rescan, **reading)
    refuse_or_skip(source, bad, on_bad_file=data.on_bad_file)
    lacking = lacking_classes(source, entries, [image.entry for image in images], split_by_us=by_us)
    refuse_or_leave_out(source, lacking, {entry.label for entry in entries}, skip=skip)
    return _Usable(scan, [image for image in images if image.entry.label not in lacking], lacking, bad, by_us)


def _split(
    source: Source, images: Sequence[ReadImage], data: DataConfig, *, seed: int
) -> tuple[list[ReadImage], list[str], dict[str, str]]:
    """The images that are used, their splits, and label -> problem of each class that lies on one side alone."""
    labels = [image.entry.label for image in images]
    groups = groups_of([image.entry for image in images], data.groups)
    splits = stratified_split(
        units_of(groups, [image.sha256 for image in images]),
        labels,
        val_fraction=data.val_fraction,
        seed=seed,
        stable=data.split == "stable",
        folds=data.folds,
        fold=data.fold,
    )
    one_sided = classes_of_one_side(labels, splits)
    refuse_or_leave_out(source, one_sided, set(labels), skip=data.on_bad_file == "skip")
    complete = [label not in one_sided for label in labels]
    return list(compress(images, complete)), list(compress(splits, complete)), one_sided


def _decoded(
    source: Source,
    usable: "_Usable",
    images: Sequence[ReadImage],
    splits: Sequence[str],
    data: DataConfig,
    **reading: Any,
) -> tuple[list[ReadImage], list[str], list[Skipped]]:
    """The images that decode, with their splits, and the others, which are refused unless data.on_bad_file is skip."""
    split_of = {image.entry: split for image, split in zip(images, splits, strict=True)}
    rest = replace(usable.scan, bad=())  # refused or listed before
    found, bad = read_images(source, rest, wanted=split_of.__contains__, rescan=data.rescan, **reading)
    refuse_or_skip(source, bad, on_bad_file=data.on_bad_file)
    for side in ("train", "val"):
        lost = {i.entry.label for i in images} - {i.entry.label for i in found if split_of[i.entry] == side}
        if lost:
            raise InputError(
                f"data.limit {data.limit}: class {min(lost)!r} has no readable image among those chosen for {side}; "
                "raise the limit"
            )
    return found, [split_of[image.entry] for image in found], bad


def samples_of(
    source: Source, images: Sequence[ReadImage], splits: Sequence[str], labels: Mapping[str, str] | None = None
) -> Samples:
    """labels: the classes by the labels of the source, if they differ."""
    rows = [
        (
            Sample(i, image.entry.path, image.sha256, split, (labels or {}).get(image.entry.label, image.entry.label)),
            image.entry,
        )
        for i, image, split in zip(_ids(images, splits), images, splits, strict=True)
    ]
    rows.sort(key=lambda row: (row[0].split, row[0].path))
    return Samples.of([sample for sample, _ in rows], [entry for _, entry in rows], source)


def _ids(images: Sequence[ReadImage], splits: Sequence[str]) -> list[str]:
    """16 hex digits of the content. The k-th copy of the same content gets -k, in the order of split and label: an id
    changes only when the hash of the manifest does."""
    ids = [image.sha256[:16] for image in images]
    count = Counter(image.sha256 for image in images)
    copies = [place for place, image in enumerate(images) if count[image.sha256] > 1]
    seen: Counter[str] = Counter()
    for place in sorted(copies, key=lambda place: (splits[place], images[place].entry.label, images[place].entry.path)):
        seen[images[place].sha256] += 1
        if seen[images[place].sha256] > 1:
            ids[place] += f"-{seen[images[place].sha256]}"
    return ids


def refuse_or_skip(
    source: Source, bad: Sequence[Skipped], *, on_bad_file: str, option: str = "--data.on_bad_file"
) -> None:
    """Raise InputError for the bad files, unless they are left out. option: as the command spells it."""
    if bad and on_bad_file == "refuse":
        conflicting = sum(one.kind == "conflicting_labels" for one in bad)
        folders = sum(one.is_folder for one in bad)
        counted = [
            (len(bad) - conflicting - folders, "unreadable file", ""),
            (folders, "unreadable folder", ""),
            (conflicting, "image with two classes", "images with two classes"),
        ]
        number = " and ".join(plural(*one) for one in counted if one[0])
        raise InputError(
            f"{number} in {source.root}: {summarize(bad)}; repair or remove them, or leave them out with {option} skip"
        )
