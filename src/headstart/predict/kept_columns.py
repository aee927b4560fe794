"""The columns of a list that its predictions carry along, with simple types as they are and others as text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.config import DataConfig
from headstart.data.sources import columns
from headstart.data.sources.columns import text
from headstart.data.sources.table import Table
from headstart.errors import InputError

if TYPE_CHECKING:  # predictions without a table do not need pyarrow
    import pyarrow as pa

TABLES = (*columns.TABLES, ".parquet")
ALL = "all"
PROBABILITY = "probability_"
_OURS = {"path", "predicted", "probability", "probabilities", "error", "prediction_set", "none_of_these", "distance"}
_OURS |= {"top", "embedding"}


@dataclass(frozen=True)
class KeptColumns:
    """fields: name and type of each."""

    fields: "tuple[pa.Field, ...]" = ()

    @staticmethod
    def of(patterns: Sequence[str], asked: str, *, image_column: str | None) -> "KeptColumns":
        """asked: names separated by commas, or "all" for all but the paths. A column that has another type in another
        table becomes text.

        Raises InputError for a pattern that is not a table, for one that lacks a column, and for a name that a table of
        predictions has already."""
        import pyarrow as pa

        found: dict[str, pa.DataType] = {}
        for pattern in patterns:
            if not is_table(pattern):
                raise InputError(
                    f"--keep_columns needs tables ({', '.join(TABLES)}), and {pattern} is not one; leave the option out"
                )
            table = Table.open(Path(pattern), DataConfig(image_column=image_column))
            names = [name.strip() for name in asked.split(",")]
            if names == [ALL]:
                names = [name for name in table.columns if name != table.image]
            for name in names:
                if name not in table.columns:
                    has = ", ".join(table.columns)
                    raise InputError(f"{pattern} has no column {name!r} (--keep_columns); its columns are {has}")
                if name in _OURS or name.startswith(PROBABILITY):
                    raise InputError(
                        f"--keep_columns: the predictions have a column {name!r} of their own; rename that of {pattern}"
                    )
                kind = _plain(table.types[name])
                found[name] = kind if found.get(name, kind) == kind else pa.string()
        return KeptColumns(tuple(pa.field(name, kind) for name, kind in found.items()))

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.fields]

    def values(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Of the row of a table, one for each field."""
        return tuple(_value(row.get(field.name), field.type) for field in self.fields)


def is_table(pattern: str) -> bool:
    """Whether it is a file of this type."""
    return pattern.lower().endswith(TABLES) and Path(pattern).is_file()


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """The type in the table of predictions: string for what a .csv could not hold."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("boolean", "integer", "floating", "decimal", "date", "timestamp")
    return kind if any(getattr(pa.types, f"is_{test}")(kind) for test in tests) else pa.string()


def _value(value: Any, kind: "pa.DataType") -> Any:
    if value is None or value != value:
        return None
    if kind == "string":
        nested = isinstance(value, list | dict)
        return json.dumps(value, ensure_ascii=False, default=str) if nested else _text(value)
    return float(value) if kind in ("float", "double", "halffloat") else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else text(value)
