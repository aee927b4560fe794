"""What is in the data, by content: ask a source what it has, hash and fully decode every image, assign the splits."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress

from PIL import Image

from headstart.config import DataConfig
from headstart.data.classes import classes_of_one_side, lacking_classes, place_in, refuse_nothing, refuse_or_leave_out
from headstart.data.decode import UnreadableImage, decode
from headstart.data.samples import PARTS, Entry, Manifest, Sample, Samples, Scan, Skipped, Source, summarize
from headstart.data.scan_cache import Index
from headstart.data.splits import is_split_by_us, split_as_configured
from headstart.errors import InputError

Keep = Callable[[str | None, str, Image.Image], object]
CHUNK = 4096  # images whose results are waited for together
SAY_S = 10.0  # between two lines on how far a long scan is


@dataclass(frozen=True, slots=True)
class _Read:
    entry: Entry
    sha256: str


@dataclass(frozen=True)
class _Unreadable:
    reason: str


def build_manifest(
    source: Source,
    data: DataConfig,
    *,
    seed: int,
    num_threads: int | None = None,
    decodes: Callable[[str], bool] | None = None,
    keep: Keep | None = None,
    say: Callable[[str], object] | None = None,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> Manifest:
    """Scan the source, decode everything once, split as `data` says.

    decodes: whether a content of this sha256 is known to decode, so that it need not be tried again.
    keep: is given every image that was decoded, with its split (None if it has none yet) and sha256, in threads.
    say: is told how far a long scan is. decoder: a file -> an RGB image.

    Raises InputError for data that cannot be trained on (missing, one class, an empty class, classes that
    differ between train and val) and for files that cannot be decoded; if data.on_bad_file is "skip", bad files, empty
    classes and classes of one side alone are left out and listed instead.
    """
    usable = _usable(source, data, num_threads=num_threads, decodes=decodes, keep=keep, say=say, decoder=decoder)
    scan, read, lacking = usable.scan, usable.read, dict(usable.lacking)
    splits = [r.entry.split or "" for r in read]
    if usable.split_by_us:
        read, splits, one_sided = _split(source, read, data, seed=seed)
        lacking |= one_sided
    left_out = [Skipped(name, "a class without images") for name in scan.empty]
    left_out += [Skipped(label, f"{reason.split(';')[0]}: left out") for label, reason in lacking.items()]
    idle = Counter(entry.split for entry in scan.entries if entry.split not in PARTS)
    left_out += [Skipped(f"split {part!r}", f"{n} images that neither train nor measure") for part, n in idle.items()]
    classes = tuple(sorted({r.entry.label for r in read}))
    return Manifest(source, classes, _samples(source, read, splits), tuple([*scan.skipped, *left_out, *usable.bad]))


def check_splits(
    source: Source,
    recipes: Mapping[str, tuple[DataConfig, int]],
    *,
    say: Callable[[str], object] | None = None,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> None:
    """Raise InputError unless build_manifest would take every (data, seed) of one source, with the same classes. They differ in
    the seed and the fold alone, so the source is read once; a message about one of them begins with its name."""
    usable = _usable(source, next(iter(recipes.values()))[0], say=say, decoder=decoder)
    if not usable.split_by_us:
        return
    left_out: dict[str, str] = {}
    for number, (name, (data, seed)) in enumerate(recipes.items()):
        try:
            _, _, one_sided = _split(source, usable.read, data, seed=seed)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        if number == 0:
            left_out = one_sided
        if differing := sorted(one_sided.keys() ^ left_out.keys()):
            reason = (one_sided | left_out)[differing[0]]
            raise InputError(f"{reason}; {name} and {next(iter(recipes))} would not have the same classes")


@dataclass(frozen=True)
class _Usable:
    """read: the images that can be trained or measured on; lacking: label -> what is wrong with a class that is left out;
    bad: files that cannot be decoded; split_by_us: whether train and val are for us to choose."""

    scan: Scan
    read: list[_Read]
    lacking: dict[str, str]
    bad: list[Skipped]
    split_by_us: bool


def _usable(
    source: Source,
    data: DataConfig,
    *,
    num_threads: int | None = None,
    decodes: Callable[[str], bool] | None = None,
    keep: Keep | None = None,
    say: Callable[[str], object] | None = None,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> _Usable:
    """Of all that takes part in a run."""
    skip = data.on_bad_file == "skip"
    scan = source.scan()
    if scan.empty and not skip:
        raise InputError(f"class folder {place_in(source, scan.empty[0])} holds no images; fill it or remove it")
    entries = [entry for entry in scan.entries if entry.split in PARTS]
    refuse_nothing(source, entries, scan)
    by_us = is_split_by_us(source, entries, data)
    read, bad = _read_all(
        source,
        scan,
        data,
        wanted=lambda entry: entry.split in PARTS,
        num_threads=num_threads,
        decodes=decodes,
        keep=keep,
        say=say,
        decoder=decoder,
    )
    _refuse_or_skip(source, bad, on_bad_file=data.on_bad_file)
    lacking = lacking_classes(source, entries, [r.entry for r in read], split_by_us=by_us)
    refuse_or_leave_out(source, lacking, {entry.label for entry in entries}, skip=skip)
    return _Usable(scan, [r for r in read if r.entry.label not in lacking], lacking, bad, by_us)


def _split(
    source: Source, read: Sequence[_Read], data: DataConfig, *, seed: int
) -> tuple[list[_Read], list[str], dict[str, str]]:
    """The images that are left, the side of each, and label -> what is wrong, of the classes that lie on one side alone."""
    splits = split_as_configured([r.entry for r in read], [r.sha256 for r in read], data, seed=seed)
    one_sided = classes_of_one_side([r.entry.label for r in read], splits)
    refuse_or_leave_out(source, one_sided, {r.entry.label for r in read}, skip=data.on_bad_file == "skip")
    whole = [r.entry.label not in one_sided for r in read]
    return list(compress(read, whole)), list(compress(splits, whole)), one_sided


def build_eval_manifest(
    source: Source,
    *,
    classes: Sequence[str],
    on_bad_file: str,
    trained_on: Callable[[str, str], bool],
    split: str | None = None,
    anew: bool = False,
    num_threads: int | None = None,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> Manifest:
    """The images of `source` to measure a finished model on, labelled by the model's own classes.

    split: which ones; None: those that the source holds out to measure on (val, else test), or all if it holds out none.
    anew: the model's run split train and val anew, so the source's own do not say what it was trained on. Images of
    which `trained_on(sha256, path)` is true are not measured on; they are listed as skipped. Raises InputError as
    build_manifest does, and for a class that the model does not know.
    """
    scan = source.scan()
    part = _part_to_measure(source, scan, split, anew=anew)
    entries = [entry for entry in scan.entries if entry.split in part]
    refuse_nothing(source, entries, scan)
    unknown = sorted({entry.label for entry in entries} - set(classes))
    if unknown and on_bad_file == "refuse":
        raise InputError(
            f"{source.root} has a class {unknown[0]!r} that the model does not know ({', '.join(classes)}); remove it, or "
            "leave it out with --on_bad_file skip"
        )
    left_out = [Skipped(label, "a class that the model does not know: left out") for label in unknown]

    def wanted(entry: Entry) -> bool:
        return entry.split in part and entry.label in classes

    read, bad = _read_all(source, scan, DataConfig(), wanted=wanted, num_threads=num_threads, decoder=decoder)
    _refuse_or_skip(source, bad, on_bad_file=on_bad_file)
    fresh, seen = [], []
    for r in read:
        if trained_on(r.sha256, r.entry.path):
            seen.append(Skipped(r.entry.path, "the model was trained on it"))
        else:
            fresh.append(r)
    if not fresh:
        raise InputError(f"{source.root} holds no image to measure on that the model was not trained on")
    samples = _samples(source, fresh, ["val"] * len(fresh))
    return Manifest(source, tuple(classes), samples, tuple([*scan.skipped, *left_out, *bad, *seen]))


def _part_to_measure(source: Source, scan: Scan, split: str | None, *, anew: bool) -> set[str | None]:
    """The values of Entry.split that are measured on."""
    there = {entry.split for entry in scan.entries}
    if split is not None:
        if split not in there:
            has = ", ".join(sorted(part for part in there if part)) or "none"
            raise InputError(f"{source.root} has no split {split!r}; its splits: {has}")
        return {split}
    if anew and there & PARTS:
        return set(PARTS)
    return next(({part} for part in ("val", "test") if part in there), there)


def _samples(source: Source, read: Sequence[_Read], splits: Sequence[str]) -> Samples:
    rows = [
        (Sample(id=i, path=r.entry.path, sha256=r.sha256, split=split, label=r.entry.label), r.entry)
        for i, r, split in zip(_ids(read, splits), read, splits, strict=True)
    ]
    rows.sort(key=lambda row: (row[0].split, row[0].path))
    return Samples.of([sample for sample, _ in rows], [entry for _, entry in rows], source)


def _read_all(
    source: Source,
    scan: Scan,
    data: DataConfig,
    *,
    wanted: Callable[[Entry], bool],
    num_threads: int | None,
    decodes: Callable[[str], bool] | None = None,
    keep: Keep | None = None,
    say: Callable[[str], object] | None = None,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> tuple[list[_Read], list[Skipped]]:
    """Hash and fully decode what the index does not know; Pillow and hashlib release the interpreter lock, so threads do."""
    index = Index.of(source, scan.entries, use=not data.rescan)
    found: list[str | None] = [None] * len(scan.entries)
    places = [place for place, entry in enumerate(scan.entries) if wanted(entry)]
    bad = list(scan.bad)
    started = spoke = time.monotonic()
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            unknown = [scan.entries[place] for place in chunk if index.sha256[place] is None]
            looked_at = pool.map(
                lambda entry: _hash_and_check(source, entry, decoder=decoder, decodes=decodes, keep=keep), unknown
            )
            for place in chunk:
                result = index.sha256[place] or next(looked_at)
                if isinstance(result, _Unreadable):
                    bad.append(Skipped(scan.entries[place].path, result.reason))
                else:
                    found[place] = result
            now, done = time.monotonic(), min(start + CHUNK, len(places))
            if say is not None and now - spoke > SAY_S and done < len(places):
                say(f"checked {done:,} of {len(places):,} images, {done / (now - started):,.0f} per second")
                spoke = now
    index.store(found)
    good = [_Read(entry, sha256) for entry, sha256 in zip(scan.entries, found, strict=True) if sha256 is not None]
    return good, bad


def _hash_and_check(
    source: Source,
    entry: Entry,
    *,
    decoder: Callable[[bytes], Image.Image],
    decodes: Callable[[str], bool] | None,
    keep: Keep | None,
) -> str | _Unreadable:
    """The sha256 of an image that decodes."""
    try:
        data = source.read(entry.path)
        sha256 = hashlib.sha256(data).hexdigest()
        if decodes is None or not decodes(sha256):
            image = decoder(data)
            if keep is not None:
                keep(entry.split, sha256, image)
    except UnreadableImage as error:
        return _Unreadable(str(error))
    except OSError as error:
        return _Unreadable(error.strerror or str(error))
    return sha256


def _refuse_or_skip(source: Source, bad: Sequence[Skipped], *, on_bad_file: str) -> None:
    if bad and on_bad_file == "refuse":
        noun = "file" if len(bad) == 1 else "files"
        raise InputError(
            f"{len(bad)} unreadable {noun} in {source.root}: {summarize(bad)}; repair or remove, "
            "or leave out with --data.on_bad_file skip"
        )


def _ids(read: Sequence[_Read], splits: Sequence[str]) -> list[str]:
    """16 hex digits of the content; the k-th copy of the same content gets -k, in the order of split and label: what an
    image is called depends on nothing that could change without the hash of the manifest changing."""
    ids = [r.sha256[:16] for r in read]
    often = Counter(r.sha256 for r in read)
    copies = [place for place, r in enumerate(read) if often[r.sha256] > 1]
    seen: Counter[str] = Counter()
    for place in sorted(copies, key=lambda place: (splits[place], read[place].entry.label, read[place].entry.path)):
        seen[read[place].sha256] += 1
        if seen[read[place].sha256] > 1:
            ids[place] += f"-{seen[read[place].sha256]}"
    return ids
