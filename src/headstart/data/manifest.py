"""What is in the data, by content: scan an image folder, hash and fully decode every file, assign the splits."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image

from headstart.data.decode import UnreadableImage, decode
from headstart.data.splits import stratified_split
from headstart.errors import InputError
from headstart.tables import strings

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Sample:
    """One image file. `path` is relative to the data root, in posix form; `id` names the content."""

    id: str
    path: str
    sha256: str
    split: str
    label: str


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why. `path` is relative to the data root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """Samples sorted by (split, path); `classes` sorted by name; `skipped` files named with their reason."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]

    def of(self, split: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.split == split]

    @property
    def sha256(self) -> str:
        """Of the (content, split, label) triples: the same after the folder moved or a file was renamed."""
        lines = sorted(f"{s.sha256} {s.split} {s.label}\n" for s in self.samples)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def table(self) -> pa.Table:
        """Columns id, path, sha256, split, label."""
        columns = ("id", "path", "sha256", "split", "label")
        return pa.Table.from_arrays(
            [strings([getattr(s, name) for s in self.samples]) for name in columns], names=list(columns)
        )


@dataclass(frozen=True)
class _Found:
    split: str | None  # None: to be split by us
    label: str
    path: Path


def build_manifest(
    root: str | Path,
    *,
    val_fraction: float,
    seed: int,
    on_bad_file: str,
    num_threads: int | None = None,
    decodes: Callable[[str], bool] | None = None,
    keep: Callable[[str | None, str, Image.Image], object] | None = None,
) -> Manifest:
    """Scan `root`, decode everything once, split where the folder does not.

    decodes: whether a content of this sha256 is known to decode, so that it need not be tried again.
    keep: is given every image that was decoded, with its split (None if the folder has none) and sha256, in threads.

    Raises InputError for a folder that cannot be trained on (missing, one class, an empty class, classes that
    differ between train and val) and, unless on_bad_file is "skip", for files that cannot be decoded.
    """
    root = Path(root)
    found, skipped = _scan_training_folder(root)
    good, bad = _read_all(root, found, num_threads=num_threads, decodes=decodes, keep=keep)
    _refuse_or_skip(root, bad, on_bad_file=on_bad_file)
    classes = _check_classes(root, found, good)

    splits = [f.split or "" for f, _ in good]
    hashes = [sha for _, sha in good]
    if good[0][0].split is None:
        splits = stratified_split(hashes, [f.label for f, _ in good], val_fraction=val_fraction, seed=seed)
    ids = _ids(hashes)
    samples = [
        Sample(id=i, path=f.path.relative_to(root).as_posix(), sha256=sha, split=split, label=f.label)
        for i, (f, sha), split in zip(ids, good, splits, strict=True)
    ]
    samples.sort(key=lambda s: (s.split, s.path))
    return Manifest(root, classes, tuple(samples), tuple(skipped + bad))


def build_eval_manifest(
    root: str | Path,
    *,
    classes: Sequence[str],
    on_bad_file: str,
    trained_on: Callable[[str, str], bool],
    num_threads: int | None = None,
) -> Manifest:
    """The images of `root` to measure a finished model on, labelled by the model's own classes.

    A folder with val/ is measured on it; one of class folders on all its images, except those of which
    `trained_on(sha256, path)` is true: they are listed as skipped. Raises InputError as build_manifest does, and for
    a class folder that the model does not know.
    """
    root = Path(root)
    _check_is_folder(root)
    base = _named(root, VAL_NAMES) or root
    found, skipped = _scan_class_folders(base, split="val")
    unknown = sorted({f.label for f in found} - set(classes))
    if unknown:
        raise InputError(
            f"{base} has a class folder {unknown[0]!r} that the model does not know ({', '.join(classes)})"
        )
    good, bad = _read_all(root, found, num_threads=num_threads)
    _refuse_or_skip(root, bad, on_bad_file=on_bad_file)
    fresh, seen = [], []
    for f, sha in good:
        path = f.path.relative_to(root).as_posix()
        if base == root and trained_on(sha, path):
            seen.append(Skipped(path, "the model was trained on it"))
        else:
            fresh.append((sha, path, f.label))
    if not fresh:
        raise InputError(f"{base} holds no image to measure on that the model was not trained on")
    ids = _ids([sha for sha, _, _ in fresh])
    samples = [
        Sample(id=i, path=path, sha256=sha, split="val", label=label)
        for i, (sha, path, label) in zip(ids, fresh, strict=True)
    ]
    samples.sort(key=lambda s: s.path)
    return Manifest(root, tuple(classes), tuple(samples), tuple(skipped + bad + seen))


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image files below `folder`, sorted, hidden ones and hidden folders left out; and the other visible files."""
    images: list[Path] = []
    others: list[Path] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in visited:  # a link back into the folder
            folders.clear()
            continue
        visited.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(names):
            if not _hidden(name):
                path = Path(parent, name)
                check_name(str(path))
                (images if path.suffix.lower() in EXTENSIONS else others).append(path)
    return images, others


def check_name(path: str) -> None:
    """Raise InputError for a name that is no text: it could stand in no table that we write."""
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes of the file system that are no UTF-8
        raise InputError(f"{path!a}: the name is not valid UTF-8; rename the file or folder") from None


def summarize(reasons: Sequence[Skipped], *, limit: int = 5) -> str:
    """'a/b.jpg (reason), c/d.png (reason) and 7 more'."""
    text = ", ".join(f"{s.path} ({s.reason})" for s in reasons[:limit])
    return text + (f" and {len(reasons) - limit} more" if len(reasons) > limit else "")


def _scan_training_folder(root: Path) -> tuple[list[_Found], list[Skipped]]:
    _check_is_folder(root)
    train, val = _named(root, TRAIN_NAMES), _named(root, VAL_NAMES)
    if train and val:
        found, odd = _scan_class_folders(train, split="train", root=root)
        held_out, odd_val = _scan_class_folders(val, split="val", root=root)
        others = [path.name for path in _subfolders(root) if path not in (train, val)]
        unused = [Skipped(name, f"a folder beside {train.name}/ and {val.name}/") for name in others]
        return found + held_out, odd + odd_val + unused
    if train:
        raise InputError(
            f"{root} has {train.name}/ but no val/; add val/ with the same class folders, or name {train} "
            "as data.root to have a validation part split off"
        )
    if val:
        raise InputError(f"{root} has {val.name}/ but no train/; add train/ with the same class folders")
    return _scan_class_folders(root, split=None)


def _named(root: Path, names: tuple[str, ...]) -> Path | None:
    """The sub-folder of one of these names, in any case, if it holds folders itself; images alone make it a class."""
    for path in _subfolders(root):
        if path.name.lower() in names and _subfolders(path):
            return path
    return None


def _scan_class_folders(
    base: Path, *, split: str | None, root: Path | None = None
) -> tuple[list[_Found], list[Skipped]]:
    root = root or base
    folders = _subfolders(base)
    if not folders:
        raise InputError(f"{base} has no class folders; expected one folder of images per class")
    found, skipped = [], []
    for entry in sorted(base.iterdir()):
        if entry.is_file() and not _hidden(entry.name) and entry.suffix.lower() in EXTENSIONS:
            skipped.append(Skipped(entry.relative_to(root).as_posix(), "an image outside the class folders"))
    for folder in folders:
        images, others = image_files(folder)
        chained = next((path for path in images if "::" in os.path.abspath(path)), None)
        if chained is not None:
            raise InputError(f"{chained}: '::' in a path is read as a chain of archives; rename the file or folder")
        found += [_Found(split, folder.name, path) for path in images]
        skipped += [
            Skipped(
                path.relative_to(root).as_posix(),
                f"{path.suffix.lower() or 'no extension'} is not an image type we read",
            )
            for path in others
        ]
        if not images:
            raise InputError(
                f"class folder {folder} holds no images ({', '.join(sorted(EXTENSIONS))}); fill it or remove it"
            )
    return found, skipped


def _read_all(
    root: Path,
    found: Sequence[_Found],
    *,
    num_threads: int | None,
    decodes: Callable[[str], bool] | None = None,
    keep: Callable[[str | None, str, Image.Image], object] | None = None,
) -> tuple[list[tuple[_Found, str]], list[Skipped]]:
    """Hash and fully decode; Pillow and hashlib release the interpreter lock, so threads do."""
    with ThreadPoolExecutor(num_threads) as pool:
        results = list(pool.map(lambda f: _hash_and_check(f, decodes=decodes, keep=keep), found))
    good = [(f, sha) for f, (sha, reason) in zip(found, results, strict=True) if reason is None]
    bad = [
        Skipped(f.path.relative_to(root).as_posix(), reason)
        for f, (_, reason) in zip(found, results, strict=True)
        if reason is not None
    ]
    return good, bad


def _hash_and_check(
    found: _Found,
    *,
    decodes: Callable[[str], bool] | None,
    keep: Callable[[str | None, str, Image.Image], object] | None,
) -> tuple[str, str | None]:
    try:
        data = found.path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if decodes is None or not decodes(sha256):
            image = decode(data)
            if keep is not None:
                keep(found.split, sha256, image)
    except UnreadableImage as error:
        return "", str(error)
    except OSError as error:
        return "", error.strerror or str(error)
    return sha256, None


def _refuse_or_skip(root: Path, bad: Sequence[Skipped], *, on_bad_file: str) -> None:
    if bad and on_bad_file == "refuse":
        noun = "file" if len(bad) == 1 else "files"
        raise InputError(
            f"{len(bad)} unreadable {noun} in {root}: {summarize(bad)}; repair or remove, "
            "or leave out with --data.on_bad_file skip"
        )


def _check_classes(root: Path, found: Sequence[_Found], good: Sequence[tuple[_Found, str]]) -> tuple[str, ...]:
    counts = Counter((f.split, f.label) for f, _ in good)
    classes = tuple(sorted({label for _, label in counts}))
    for split, label in sorted({(f.split or "", f.label) for f in found}):
        if not counts[(split or None, label)]:
            raise InputError(f"class {label!r} has no readable image in {root / split}; add some or remove the class")
    if {split for split, _ in counts} == {"train", "val"}:
        for label in classes:
            for split, other in (("train", "val"), ("val", "train")):
                if not counts[(split, label)]:
                    raise InputError(
                        f"class {label!r} is in {other}/ but not in {split}/ of {root}; both need the same class folders"
                    )
    if len(classes) < 2:
        raise InputError(f"{root} has a single class, {classes[0]!r}; a classifier needs at least two class folders")
    for (part, label), count in counts.items():
        if part is None and count < 2:
            raise InputError(
                f"class {label!r} in {root} has a single image; at least two are needed, one to train and one to measure"
            )
    return classes


def _ids(hashes: Sequence[str]) -> list[str]:
    """16 hex digits of the content; the k-th copy of the same content gets -k, in the order given."""
    seen: Counter[str] = Counter()
    ids = []
    for sha in hashes:
        seen[sha] += 1
        ids.append(sha[:16] if seen[sha] == 1 else f"{sha[:16]}-{seen[sha]}")
    return ids


def _check_is_folder(root: Path) -> None:
    if not root.exists():
        raise InputError(f"{root} does not exist; name a folder of images")
    if not root.is_dir():
        raise InputError(f"{root} is a file, not a folder; name a folder of class folders")


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")
