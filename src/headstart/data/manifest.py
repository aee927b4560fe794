"""What is in the data, by content: ask a source what it has, hash and fully decode every image, assign the splits."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image

from headstart.config import DataConfig
from headstart.data.decode import UnreadableImage, decode
from headstart.data.index import Index
from headstart.data.samples import Entry, Manifest, Sample, Samples, Scan, Skipped, Source, summarize
from headstart.data.splits import split_as_configured
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
    skip = data.on_bad_file == "skip"
    scan = source.scan()
    if scan.empty and not skip:
        raise InputError(f"class folder {_name(source, scan.empty[0])} holds no images; fill it or remove it")
    read, bad = _read_all(
        source, scan, data, num_threads=num_threads, decodes=decodes, keep=keep, say=say, decoder=decoder
    )
    _refuse_or_skip(source, bad, on_bad_file=data.on_bad_file)
    left_out = [Skipped(name, "a class without images") for name in scan.empty]
    by_us = data.split != "folder" or not any(r.entry.split for r in read)
    read, classes, odd = _check_classes(source, scan, read, split_by_us=by_us, skip=skip)
    splits = [r.entry.split or "" for r in read]
    if by_us:
        splits = split_as_configured([r.entry for r in read], [r.sha256 for r in read], data, seed=seed)
    samples = _samples(source, read, splits)
    return Manifest(source, classes, samples, tuple([*scan.skipped, *left_out, *odd, *bad]))


def build_eval_manifest(
    source: Source,
    *,
    classes: Sequence[str],
    on_bad_file: str,
    trained_on: Callable[[str, str], bool],
    num_threads: int | None = None,
) -> Manifest:
    """The images of `source` to measure a finished model on, labelled by the model's own classes.

    If the source holds images out to measure on, those are taken; else all of them, except those of which
    `trained_on(sha256, path)` is true: they are listed as skipped. Raises InputError as build_manifest does, and for
    a class that the model does not know.
    """
    scan = source.scan()
    if any(entry.split == "val" for entry in scan.entries):
        scan = Scan([entry for entry in scan.entries if entry.split == "val"], scan.skipped, scan.empty, scan.bad)
    unknown = sorted({entry.label for entry in scan.entries} - set(classes))
    if unknown:
        raise InputError(
            f"{source.root} has a class {unknown[0]!r} that the model does not know ({', '.join(classes)})"
        )
    read, bad = _read_all(source, scan, DataConfig(), num_threads=num_threads)
    _refuse_or_skip(source, bad, on_bad_file=on_bad_file)
    fresh, seen = [], []
    for r in read:
        if r.entry.split is None and trained_on(r.sha256, r.entry.path):
            seen.append(Skipped(r.entry.path, "the model was trained on it"))
        else:
            fresh.append(r)
    if not fresh:
        raise InputError(f"{source.root} holds no image to measure on that the model was not trained on")
    samples = _samples(source, fresh, ["val"] * len(fresh))
    return Manifest(source, tuple(classes), samples, tuple([*scan.skipped, *bad, *seen]))


def _samples(source: Source, read: Sequence[_Read], splits: Sequence[str]) -> Samples:
    ids = _ids([r.sha256 for r in read])
    rows = [
        (Sample(id=i, path=r.entry.path, sha256=r.sha256, split=split, label=r.entry.label), r.entry.block)
        for i, r, split in zip(ids, read, splits, strict=True)
    ]
    rows.sort(key=lambda row: (row[0].split, row[0].path))
    return Samples.of([sample for sample, _ in rows], [block for _, block in rows], source)


def _read_all(
    source: Source,
    scan: Scan,
    data: DataConfig,
    *,
    num_threads: int | None,
    decodes: Callable[[str], bool] | None = None,
    keep: Keep | None = None,
    say: Callable[[str], object] | None = None,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> tuple[list[_Read], list[Skipped]]:
    """Hash and fully decode what the index does not know; Pillow and hashlib release the interpreter lock, so threads do."""
    index = Index.of(source, scan.entries, use=not data.rescan)
    good: list[_Read] = []
    bad = list(scan.bad)
    started = spoke = time.monotonic()
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(scan.entries), CHUNK):
            entries, known = scan.entries[start : start + CHUNK], index.sha256[start : start + CHUNK]
            unknown = [entry for entry, sha256 in zip(entries, known, strict=True) if sha256 is None]
            looked_at = pool.map(
                lambda entry: _hash_and_check(source, entry, decoder=decoder, decodes=decodes, keep=keep), unknown
            )
            for entry, sha256 in zip(entries, known, strict=True):
                result = sha256 or next(looked_at)
                if isinstance(result, _Unreadable):
                    bad.append(Skipped(entry.path, result.reason))
                else:
                    good.append(_Read(entry, result))
            now, done = time.monotonic(), len(good) + len(bad)
            if say is not None and now - spoke > SAY_S and done < len(scan.entries):
                say(f"checked {done:,} of {len(scan.entries):,} images, {done / (now - started):,.0f} per second")
                spoke = now
    index.store([(r.entry, r.sha256) for r in good])
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


def _check_classes(
    source: Source, scan: Scan, read: Sequence[_Read], *, split_by_us: bool, skip: bool
) -> tuple[list[_Read], tuple[str, ...], list[Skipped]]:
    """The images of classes that can be trained and measured, their classes, and what was left out for the others."""

    def parts_of(entries: Iterator[Entry]) -> Counter[tuple[str | None, str]]:
        return Counter((None if split_by_us else entry.split, entry.label) for entry in entries)

    counts = parts_of(r.entry for r in read)
    wanted = parts_of(iter(scan.entries))
    labels = sorted({label for _, label in wanted})
    parts: list[str | None] = [None] if split_by_us else ["train", "val"]
    lacking: dict[str, str] = {}  # label: what is wrong with the class
    for label in labels:
        for part, other in zip(parts, reversed(parts), strict=True):
            have = counts[(part, label)]
            if not have and wanted[(part, label)]:
                place = _name(source, part) if part else source.root
                lacking[label] = f"class {label!r} has no readable image in {place}; add some or remove the class"
            elif not have:
                lacking[label] = (
                    f"class {label!r} is in {other}/ but not in {part}/ of {source.root}; both need the same class folders"
                )
            elif part is None and have < 2:
                lacking[label] = (
                    f"class {label!r} in {source.root} has a single image; at least two are needed, one to train and one to measure"
                )
    classes = tuple(label for label in labels if label not in lacking)
    if lacking and (not skip or len(classes) < 2):
        raise InputError(next(iter(lacking.values())))
    if len(classes) < 2:
        raise InputError(
            f"{source.root} has a single class, {classes[0]!r}; a classifier needs at least two class folders"
        )
    left_out = [Skipped(label, f"{reason.split(';')[0]}: left out") for label, reason in lacking.items()]
    return [r for r in read if r.entry.label not in lacking], classes, left_out


def _name(source: Source, path: str) -> str:
    return str(PurePosixPath(source.root, path))


def _ids(hashes: Sequence[str]) -> list[str]:
    """16 hex digits of the content; the k-th copy of the same content gets -k, in the order given."""
    seen: Counter[str] = Counter()
    ids = []
    for sha in hashes:
        seen[sha] += 1
        ids.append(sha[:16] if seen[sha] == 1 else f"{sha[:16]}-{seen[sha]}")
    return ids
