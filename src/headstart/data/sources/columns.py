"""From the rows of a table to the entries of a source: which column holds what, and what its values mean."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headstart.config import DataConfig
from headstart.data.source import PARTS, Entry, Scan, Skipped
from headstart.errors import InputError

ALL = ("image_column", "label_column", "split_column", "group_column")
"""The keys of the configuration."""
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")

_PATHS = ("image_path", "img_path", "file_name", "filename", "filepath", "file_path", "file", "path")
IMAGE = ("image", "img", *_PATHS, "jpg", "png", "webp")
_USUAL = {
    "image_column": IMAGE,
    "label_column": ("label", "labels", "class", "class_name", "category", "target", "cls", "species"),
    "split_column": ("split", "set", "subset", "partition"),
    "group_column": (),
}
_CONTENT = {"image_column": "images", "label_column": "classes", "group_column": "groups"}
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Columns:
    """The names of the columns with class, split and group."""

    label: str
    split: str | None
    group: str | None

    @staticmethod
    def of(data: DataConfig, names: Sequence[str], *, where: str, split: bool = True) -> "Columns":
        """Those that `data` names, else by their usual names. split: False to use one only if `data` names it.
        Raises InputError if there is no column of classes, or none of a name in `data`."""
        has_splits = split or data.split_column is not None
        return Columns(
            required("label_column", data, names, where=where),
            _find("split_column", data, names, where=where) if has_splits else None,
            _find("group_column", data, names, where=where),
        )

    @property
    def names(self) -> list[str]:
        return [name for name in (self.label, self.split, self.group) if name]

    def entry(
        self,
        path: str,
        row: Mapping[str, Any],
        *,
        where: str,
        classes: Sequence[str] | None = (),
        split: str | None = None,
        **more: Any,
    ) -> Entry:
        """classes: the names of numbered classes; () for none; None where -1 is a class as well. split: without a
        column of splits; more: other fields of Entry."""
        label = row.get(self.label)
        return Entry(
            path,
            text(label) if classes is None else class_name(label, classes, where=where),
            split_named(text(row.get(self.split))) if self.split else split,
            text(row.get(self.group)) if self.group else "",
            **more,
        )


def required(key: str, data: DataConfig, names: Sequence[str], *, where: str) -> str:
    """The column of a key of the configuration. Raises InputError if there is none."""
    found = _find(key, data, names, where=where)
    if found is None:
        raise InputError(
            f"{where} has no column that names the {_CONTENT[key]}; its columns are {', '.join(names)}; name one with "
            f"{option(key)}"
        )
    return found


def _find(key: str, data: DataConfig, names: Sequence[str], *, where: str) -> str | None:
    asked = getattr(data, key)
    if asked is not None:
        if asked not in names:
            raise InputError(f"{where} has no column {asked!r} ({key}); its columns are {', '.join(names)}")
        return str(asked)
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name] for name in _USUAL[key] if name in lowered), None)


def option(key: str) -> str:
    """The option as it is typed: commands other than train have no sections, and no groups."""
    return f"--data.{key}" if key == "group_column" else f"--{key} (train: --data.{key})"


def split_named(name: str) -> str:
    """ "train", "val" or "test"; any other name stays as it is, and is not used in training."""
    return next((split for split, names in _SPLITS.items() if name.lower() in names), name)


def class_name(value: Any, names: Sequence[str], *, where: str) -> str:
    """The name of a value in a column of classes; "" for a missing one (-1: what datasets writes for no class).

    names: of the numbers, if the values are class indices."""
    if value is None or value == -1:
        return ""
    if not names or isinstance(value, str):
        return text(value)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise InputError(
            f"{where}: the class is {value!r}; it must be an index of the {len(names)} classes, counted from 0"
        )
    return names[value]


def text(value: Any) -> str:
    """A class or a path as text: 3 and 3.0 are '3', a missing value is '', bytes are UTF-8. Raises InputError for a
    value that holds several."""
    if value is None or value != value:
        return ""
    if isinstance(value, list | dict):
        raise InputError(
            f"expected one name but found {str(value)[:60]!r}; name the columns with {option('image_column')} and "
            f"{option('label_column')}"
        )
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def collect(entries: Iterable[Entry], skipped: list[Skipped], *, where: str, numbered: bool = False) -> Scan:
    """The usable ones of `entries`. Those without a path or a class ("") and repeated ones are added to `skipped`.

    numbered: whether messages give the row number. Raises InputError for an image with two classes."""
    kept: list[Entry] = []
    without: Counter[str] = Counter()  # in splits that are not used and need no classes
    seen: dict[tuple[bool, str], str] = {}
    for number, entry in enumerate(entries, start=1):
        row = f" in row {number}" if numbered else ""
        used = entry.split in PARTS
        if not entry.path or not entry.label:
            if used:
                lacks = "no class" if entry.path else "no path"
                skipped.append(Skipped(entry.path or f"row {number}", f"{lacks}{row}"))
            else:
                without[str(entry.split)] += 1
            continue
        check_name(entry.path)
        label = seen.setdefault((used, entry.path), "")
        if not label:
            seen[(used, entry.path)] = entry.label
            kept.append(entry)
        elif label == entry.label:
            skipped.append(Skipped(entry.path, f"listed again{row}"))
        else:
            raise InputError(f"{where} lists {entry.path} as {label!r} and{row} as {entry.label!r}; keep one of them")
    skipped += [Skipped(f"split {name!r}", f"{n} without a path or a class") for name, n in sorted(without.items())]
    return Scan(kept, skipped)


def check_name(path: str) -> None:
    """Raise InputError for a name that cannot be written to a table."""
    if "\0" in path:
        raise InputError(f"{path!a}: the name contains a NUL character; correct the list of names")
    if not is_text(path):
        raise InputError(f"{path!a}: the name is not valid UTF-8; rename the file or folder")


def is_text(name: str) -> bool:
    """False for file names that are not UTF-8 (surrogates of os.fsdecode)."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)
