"""Reads and checks the files of a finished run; a missing or damaged file raises one sentence. Knows no torch."""

import json
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from headstart.errors import InputError
from headstart.files import check_outside
from headstart.runs.lock import has_begun, is_finished, resume_command
from headstart.wording import one_line

_T = TypeVar("_T")
TABLES = {
    "manifest.parquet": ("id", "path", "sha256", "split", "label"),
    "predictions.parquet": ("id", "path", "label", "probabilities"),
}


def check_finished(run: str) -> None:
    """Raise InputError unless it is a folder with a summary.json."""
    read_file(Path(run), "summary.json", lambda _: None)


def read_file(folder: Path, name: str, read: Callable[[Path], _T]) -> _T:
    """The result of `read` for a file of the folder. Raises InputError naming the file."""
    path = folder / name
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the folder of a finished run")
    if not path.is_file() and has_begun(folder) and not is_finished(folder):
        raise InputError(f"{folder} is not finished (no {name}); to continue it: {resume_command(folder)}")
    if not path.is_file():
        raise InputError(f"{folder} has no {name}; name the folder of a finished run, or a complete copy of one")
    try:
        return read(path.absolute())  # pyarrow takes some relative names, such as lr:0.1, for addresses
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException, yaml.YAMLError) as error:
        raise damaged(path, one_line(error)[:200]) from None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    return mapping_with(folder / name, read_file(folder, name, lambda path: json.loads(path.read_text("utf-8"))))


def read_yaml(folder: Path, name: str) -> dict[str, Any]:
    return mapping_with(folder / name, read_file(folder, name, lambda path: yaml.safe_load(path.read_text("utf-8"))))


def data_of(folder: Path) -> dict[str, Any]:
    """Section `data` of the run's configuration; empty if the folder holds only the model file."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    return mapping_with(path, mapping_with(path, read_yaml(folder, path.name), ["data"])["data"], where="data")


def check_outside_data(out: str | Path, run: Path, *, data: str | None = None) -> None:
    """Raise InputError if `out` lies inside the images of a run. data: where they are, if they were moved."""
    with suppress(InputError):  # a damaged configuration names no images
        data = data or _images_of(run if run.is_dir() else run.parent)
    if data:
        check_outside(out, data)


def to_evaluate(run: str, data: str | None, split: str | None) -> tuple[str, str | None]:
    """The images to evaluate a run on, and their split. data: None for the test set of the images that it was trained
    on, or for another `split` of them. Raises InputError."""
    if data is not None:
        return data, split
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    root = data_of(folder).get("root")
    if not root:
        raise InputError(f"{run} does not name the images that it was trained on; name labelled images with --data")
    if _images_of(folder) is None:
        raise InputError(f"{run} was trained on {root}, which is not here; name its new place with --data")
    return str(root), split or "test"


def _images_of(folder: Path) -> str | None:
    """The source of the images of a run, None if it is not here. A relative name may be that of another folder if the
    working folder is another one, so a folder must hold the first image. Raises InputError."""
    root = str(data_of(folder).get("root") or "")
    if not os.path.exists(root):
        is_pattern = any(sign in root for sign in ("://", "*", "{"))
        return root if is_pattern else None
    if os.path.isabs(root) or not os.path.isdir(root) or not (folder / "manifest.parquet").is_file():
        return root
    first = read_table(folder, "manifest.parquet").column("path")[:1].to_pylist()
    is_saved = os.path.isfile(os.path.join(root, "state.json"))  # of datasets; it names its images all/0
    return root if is_saved or all(os.path.exists(os.path.join(root, p.split("/")[0])) for p in first) else None


def read_table(folder: Path, name: str) -> pa.Table:
    """manifest.parquet or predictions.parquet, with all its columns."""
    table = read_file(folder, name, pq.read_table)
    missing = [column for column in TABLES[name] if column not in table.column_names]
    if missing:
        raise damaged(folder / name, f"it has no column {', '.join(missing)}")
    return table


def labels_and_probabilities(path: Path, table: pa.Table, classes: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
    """From predictions.parquet: class indices, (n,) int64, and probabilities, (n, C) float64. Raises InputError."""
    labels = table.column("label").to_pylist()
    unknown = sorted({str(label) for label in labels} - set(classes))
    if unknown:
        raise damaged(path, f"it has classes that the model does not have, such as {unknown[0]}")
    index = {name: place for place, name in enumerate(classes)}
    try:
        rows = np.array(table.column("probabilities").to_pylist(), dtype=np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if not labels or rows.shape != (len(labels), len(classes)):
        raise damaged(path, f"it does not hold {len(classes)} probabilities for each image")
    if not np.isfinite(rows).all():
        first = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise damaged(path, f"a probability of {table.column('path')[first].as_py()} is not a number")
    return np.array([index[label] for label in labels], dtype=np.int64), rows


def mapping_with(path: Path, values: Any, names: Collection[str] = (), *, where: str = "it") -> dict[str, Any]:
    """`values` if it is a mapping with these names, else raises InputError. where: the part of the file that it is."""
    if not isinstance(values, dict):
        raise damaged(path, f"{where} is not a mapping of names to values")
    missing = [name for name in names if name not in values]
    if missing:
        raise damaged(path, f"{where} has no {', '.join(missing)}")
    return values


def damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged or was not written by headstart ({reason}); use an intact copy")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without a last line that is still being written. Raises InputError if the file is
    damaged."""
    text = path.read_text(encoding="utf-8")
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except json.JSONDecodeError as error:
        raise damaged(path, str(error)) from None
