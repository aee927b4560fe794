"""`headstart predict`: which images, and the table of what the model says of them."""

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from headstart.data.folders import check_name, image_files
from headstart.errors import InputError
from headstart.files import check_out, write_atomically
from headstart.predict import Prediction, Predictor
from headstart.runtime import set_threads

OUT_TYPES = (".csv", ".jsonl", ".parquet")


def predict_command(run: str, patterns: Sequence[str], *, out: str | None, batch_size: int) -> None:
    """`headstart predict`: print a table, write a file."""
    if batch_size < 1:
        raise InputError(f"--batch_size is {batch_size}; it must be at least 1")
    if out is not None and Path(out).suffix not in OUT_TYPES:
        raise InputError(f"--out {out}: unknown type {Path(out).suffix or '(none)'}; use one of {', '.join(OUT_TYPES)}")
    check_out(out)
    paths = find_images(patterns)
    set_threads(None)
    predictor = Predictor(run)
    results = predictor.predict(paths, batch_size=batch_size)
    _print(results)
    if out is not None:
        _write(Path(out), results, predictor.classes)


def find_images(patterns: Sequence[str]) -> list[str]:
    """Files as they are named, folders searched below, globs expanded. Raises InputError if one matches nothing."""
    paths: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = [str(image) for image in image_files(path)[0]]
        elif path.is_file():
            found = [pattern]
        else:
            found = sorted(p for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
        for name in found:
            check_name(name)
        if not found:
            raise InputError(f"{pattern}: no image there; name files, folders or quoted globs")
        paths += found
    return paths


def _print(results: Sequence[Prediction], *, limit: int = 40) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    table = Table("image", "predicted", "probability")
    for result in results[:limit]:
        if result.error is not None:
            table.add_row(result.path, "", f"unreadable: {result.error}")
        else:
            table.add_row(result.path, result.label, f"{result.probability:.3f}")
    console.print(table)
    if len(results) > limit:
        console.print(f"and {len(results) - limit} more; --out FILE writes all of them")
    bad = [result for result in results if result.error is not None]
    if bad:
        console.print(f"{len(bad)} of {len(results)} could not be read", highlight=False)


def _write(path: Path, results: Sequence[Prediction], classes: Sequence[str]) -> None:
    try:
        write_atomically(path, lambda staging: _write_as(path.suffix, staging, results, classes))
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}") from None


def _write_as(suffix: str, staging: Path, results: Sequence[Prediction], classes: Sequence[str]) -> None:
    if suffix == ".jsonl":
        with staging.open("w", encoding="utf-8") as lines:
            for result in results:
                record = {
                    "path": result.path,
                    "predicted": result.label,
                    "probabilities": result.probabilities,
                }
                lines.write(json.dumps(record | {"error": result.error}, ensure_ascii=False) + "\n")
        return
    columns: dict[str, Any] = {
        "path": [result.path for result in results],
        "predicted": pa.array([result.label for result in results], pa.string()),
        "error": pa.array([result.error for result in results], pa.string()),
    }
    for name in classes:
        values = [None if result.probabilities is None else result.probabilities[name] for result in results]
        columns[f"probability_{name}"] = pa.array(values, pa.float64())
    table = pa.table(columns)
    if suffix == ".csv":
        pyarrow.csv.write_csv(table, staging)
    else:
        pq.write_table(table, staging)
