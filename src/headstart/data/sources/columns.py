"""Which column of a table holds what: named by the configuration, or found by its name."""

from collections.abc import Sequence

from headstart.config import DataConfig
from headstart.errors import InputError

IMAGE = (
    "image",
    "img",
    "image_path",
    "img_path",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "file",
    "path",
    "jpg",
    "png",
    "webp",
)
LABEL = ("label", "labels", "class", "class_name", "category", "target", "cls", "species")
SPLIT = ("split", "set", "subset", "partition")
TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "dev")
TEST = ("test", "testing")


def image_column(data: DataConfig, columns: Sequence[str], *, where: str) -> str:
    return _required(data.image_column, IMAGE, columns, what="images", key="image_column", where=where)


def label_column(data: DataConfig, columns: Sequence[str], *, where: str) -> str:
    return _required(data.label_column, LABEL, columns, what="classes", key="label_column", where=where)


def split_column(data: DataConfig, columns: Sequence[str], *, where: str) -> str | None:
    return _optional(data.split_column, SPLIT, columns, key="split_column", where=where)


def group_column(data: DataConfig, columns: Sequence[str], *, where: str) -> str | None:
    return _optional(data.group_column, (), columns, key="group_column", where=where)


def required_group(data: DataConfig, columns: Sequence[str], *, where: str) -> str:
    return _required(data.group_column, (), columns, what="groups", key="group_column", where=where)


def split_named(name: str) -> str:
    """ "train", "val" or "test"; other names stay what they are, and take no part."""
    lowered = name.lower()
    known = (("train", TRAIN), ("val", VAL), ("test", TEST))
    return next((split for split, names in known if lowered in names), name)


def option(key: str) -> str:
    """As it is typed: the other commands know no sections, and no groups."""
    return f"--data.{key}" if key == "group_column" else f"--{key} (train: --data.{key})"


def _required(
    asked: str | None, known: Sequence[str], columns: Sequence[str], *, what: str, key: str, where: str
) -> str:
    found = _optional(asked, known, columns, key=key, where=where)
    if found is None:
        raise InputError(
            f"{where} has no column that names the {what}; its columns are {', '.join(columns)}; name one with {option(key)}"
        )
    return found


def _optional(asked: str | None, known: Sequence[str], columns: Sequence[str], *, key: str, where: str) -> str | None:
    if asked is not None:
        if asked not in columns:
            raise InputError(f"{key} is {asked!r}, and {where} has the columns {', '.join(columns)}")
        return asked
    lowered = {column.lower(): column for column in reversed(columns)}
    return next((lowered[name] for name in known if name in lowered), None)
