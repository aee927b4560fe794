"""From the rows of a table to the entries of a source: which column holds what, and what its values mean."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath
from typing import Any

from headstart.config import DataConfig
from headstart.data.folder_walk import is_image
from headstart.data.source import PARTS, Entry, Scan, Skipped
from headstart.data.text_tables import check_columns
from headstart.errors import InputError

ALL = ("image_column", "label_column", "split_column", "group_column")
"""The keys of the configuration."""
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")

_PATHS = ("image_path", "img_path", "file_name", "filename", "filepath", "file_path", "file", "path")
IMAGE = ("image", "img", *_PATHS, "jpg", "png", "webp")
_VAL_FLAGS = ("is_valid", "is_val", "is_validation")
_FLAGS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(_VAL_FLAGS, ("val", "train")),
    "is_test": ("test", None),
}
"""Columns of a split that hold true and false: the split of either."""
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_USUAL = {
    "image_column": IMAGE,
    "label_column": ("label", "labels", "class", "class_name", "category", "target", "cls", "species"),
    "split_column": ("split", "set", "subset", "partition", *_FLAGS),
    "group_column": (),
}
_CONTENT = {"image_column": "images", "label_column": "classes", "group_column": "groups"}
_WHOLE = re.compile(r"(?:\+(?=\d)|-(?=0(?:\.0*)?$))?(-?\d+)(?:\.0+)?")  # without a plus; -0 is 0
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Columns:
    """The names of the columns with class, split and group. test: beside a split of train and val in true and false,
    the column that says which images are test images instead."""

    label: str
    split: str | None
    group: str | None
    test: str | None = None

    @staticmethod
    def of(data: DataConfig, names: Sequence[str], *, where: str, split: bool = True) -> "Columns":
        """Those that `data` names, else by their usual names. split: False to use one only if `data` names it.
        Raises InputError if there is no column of classes, none of a name in `data`, or several of one name."""
        check_columns(where, names)
        label = required("label_column", data, names, where=where)
        split_column, test = None, None
        if split or data.split_column is not None:
            split_column = _find("split_column", data, names, where=where)
            if data.split_column is None and split_column and _flag(split_column) in _VAL_FLAGS:
                test = next((name for name in names if _flag(name) == "is_test"), None)
        return Columns(label, split_column, _find("group_column", data, names, where=where), test)

    @property
    def names(self) -> list[str]:
        return [name for name in (self.label, self.split, self.group, self.test) if name]

    def entry(
        self,
        path: str,
        row: Mapping[str, Any],
        *,
        where: str,
        classes: Sequence[str] = (),
        split: str | None = None,
        **more: Any,
    ) -> Entry:
        """where: source and row, for messages. classes: the names of numbered classes; () for none. split: without a
        column of splits; more: other fields of Entry. Raises InputError for a value that cannot be used."""
        return Entry(
            path,
            class_name(row.get(self.label), classes, where=where, column=self.label),
            self._split(row, where=where) if self.split else split,
            cell(row, self.group, where=where) if self.group else "",
            **more,
        )

    def _split(self, row: Mapping[str, Any], *, where: str) -> str | None:
        assert self.split is not None
        if self.test and _is_true(row, self.test, where=where):
            return "test"
        sides = _FLAGS.get(_flag(self.split))
        if sides is None:
            return split_named(cell(row, self.split, where=where))
        return sides[0] if _is_true(row, self.split, where=where) else sides[1]


def _flag(name: str) -> str:
    return name.strip().lower()


def _is_true(row: Mapping[str, Any], column: str, *, where: str) -> bool:
    value = cell(row, column, where=where)
    truth = _TRUTH.get(_plain(value).lower())
    if truth is None:
        raise InputError(f"{where}: the column {column} holds {value!r}; it must be true or false")
    return truth


def required(key: str, data: DataConfig, names: Sequence[str], *, where: str) -> str:
    """The column of a key of the configuration. Raises InputError if there is none."""
    found = _find(key, data, names, where=where)
    if found is None:
        header = "; the first line must hold the names of the columns" if any(map(is_image, names)) else ""
        raise InputError(
            f"{where} has no column that names the {_CONTENT[key]}; its columns are {', '.join(names)}; name one with "
            f"{option(key)}{header}"
        )
    return found


def _find(key: str, data: DataConfig, names: Sequence[str], *, where: str) -> str | None:
    asked = getattr(data, key)
    if asked is not None:
        stripped = {name.strip(): name for name in reversed(names)}
        if asked not in names and asked.strip() in stripped:
            return stripped[asked.strip()]
        if asked not in names:
            raise InputError(f"{where} has no column {asked!r} ({key}); its columns are {', '.join(names)}")
        return str(asked)
    lowered = {name.strip().lower(): name for name in reversed(names)}
    found = [lowered[name] for name in _USUAL[key] if name in lowered]
    if sum(_flag(name) in _VAL_FLAGS for name in found) > 1 and all(_flag(name) in _FLAGS for name in found):
        raise InputError(
            f"{where} has the columns {' and '.join(found)}; name one with {option(key)}, or write one column split "
            "with train, val and test"
        )
    return found[0] if found else None


def has(key: str, data: DataConfig, names: Sequence[str]) -> bool:
    """Whether `required` finds a column."""
    asked = getattr(data, key)
    return asked in names if asked is not None else any(name.lower() in _USUAL[key] for name in names)


def option(key: str) -> str:
    """The option as it is typed: commands other than train have no sections, and no groups."""
    return f"--data.{key}" if key == "group_column" else f"--{key} (train: --data.{key})"


def split_named(name: str) -> str:
    """ "train", "val" or "test"; any other name stays as it is, and is not used in training."""
    return next((split for split, names in _SPLITS.items() if name.lower() in names), name)


def class_name(value: Any, names: Sequence[str] = (), *, where: str, column: str) -> str:
    """The class that a value in a column means, for all sources; "" for a missing one.

    Whole numbers have no decimals and no plus (1, "1.0" and "+1" are the class 1, -0.0 is 0, and 01 is 01), and true
    and false are lower case.
    names: of the numbers, if the values are class indices; -1, which datasets writes for no class, is then missing.
    Raises InputError for several classes, also as the text of a list, and for an index without a name."""
    if isinstance(value, list | dict) or _is_list(value):
        what = "an object" if isinstance(value, dict) else "a list"
        raise InputError(
            f"{where}: the column {column} holds {what}, {str(value)[:60]}; headstart gives each image one class, so "
            "name a column with one class, or write one row per image"
        )
    if value is None or (names and value == -1):
        return ""
    if not names:
        return _plain(text(value))
    if isinstance(value, str):
        return text(value)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise InputError(
            f"{where}: the class is {value!r}; it must be an index of the {len(names)} classes, counted from 0"
        )
    return names[value]


def _is_list(value: Any) -> bool:
    """Whether it is the text of a list of JSON or Python, as pandas writes one to a .csv."""
    if not isinstance(value, str) or not value.strip().startswith("["):
        return False
    for parsed in (json.loads, ast.literal_eval):
        try:
            return isinstance(parsed(value.strip()), list)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return False


def _plain(name: str) -> str:
    """Whole numbers without decimals and plus, true and false in lower case."""
    if name.lower() in ("true", "false"):
        return name.lower()
    whole = _WHOLE.fullmatch(name)
    return whole[1] if whole else name


def cell(row: Mapping[str, Any], column: str, *, where: str) -> str:
    """A path, split or group as text; "" for a missing one. Raises InputError for a value that holds several."""
    value = row.get(column)
    if isinstance(value, list | dict):
        raise InputError(f"{where}: the column {column} holds {str(value)[:60]}; it must hold one value")
    return text(value)


def text(value: Any) -> str:
    """3 and 3.0 are '3', a missing value is '', bytes are UTF-8."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def collect(
    entries: Iterable[Entry], skipped: list[Skipped], *, where: str, numbered: bool = False, unread_tests: bool = False
) -> Scan:
    """The usable ones of `entries`. Those without a path or a class ("") and repeated ones are added to `skipped`.

    numbered: whether reasons give the row number. unread_tests: whether there is a test set that is not among the
    entries. An image with several classes is bad. ./a.jpg and a.jpg are the same image."""
    kept: list[Entry] = []
    without: Counter[str] = Counter()  # in splits that are not used and need no classes
    seen: dict[tuple[bool, str], Entry] = {}
    conflicts: dict[tuple[bool, str], list[str]] = {}  # the first path as written, and the rows
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
        name = (used, normpath(entry.path))
        first = seen.setdefault(name, entry)
        if first is entry:
            kept.append(entry)
        elif first.label == entry.label:
            skipped.append(Skipped(entry.path, f"listed again{row}"))
        else:
            conflicts.setdefault(name, [first.path, f"listed as {first.label!r}"]).append(
                f"and{row} as {entry.label!r}"
            )
    skipped += [Skipped(f"split {name!r}", f"{n} without a path or a class") for name, n in sorted(without.items())]
    if conflicts:
        kept = [entry for entry in kept if (entry.split in PARTS, normpath(entry.path)) not in conflicts]
    bad = tuple(Skipped(path, " ".join(rows), "conflicting_labels") for path, *rows in conflicts.values())
    has_test = unread_tests or "test" in without or any(entry.split == "test" for entry in kept)
    return Scan(kept, skipped, bad=bad, has_test=has_test, unread_tests=unread_tests)


def check_name(path: str) -> None:
    """Raise InputError for a name that cannot be written to a table."""
    if "\0" in path:
        raise InputError(f"{path!a}: the name contains a NUL character; correct the list of names")
    if not is_text(path):
        raise InputError(f"{path!a}: the name is not valid UTF-8; rename the file or folder")


def is_text(name: str) -> bool:
    """False for file names that are not UTF-8 (surrogates of os.fsdecode)."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)
