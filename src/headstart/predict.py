"""Model file + images -> table. Reads everything it needs from the file."""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from headstart.artifacts import find_model, load_model
from headstart.data.decode import UnreadableImage
from headstart.data.folders import check_name, image_files
from headstart.errors import InputError
from headstart.files import check_out, write_atomically
from headstart.runtime import set_threads

OUT_TYPES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Prediction:
    """probabilities: class name -> probability, in the model's class order. error: why there is none."""

    path: str
    predicted: str | None
    probabilities: dict[str, float] | None
    error: str | None = None

    @property
    def confidence(self) -> float | None:
        return None if self.probabilities is None or self.predicted is None else self.probabilities[self.predicted]


class Predictor:
    """A finished model. Precision, preprocessing and class names are those of the file."""

    def __init__(self, run: str | Path) -> None:
        self.model, self.info = load_model(find_model(run))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._layout = torch.channels_last if self.info.channels_last else torch.contiguous_format
        self.model = self.model.to(self.device, memory_format=self._layout)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    def predict(self, paths: Sequence[str | Path], *, batch_size: int = 64) -> Iterator[Prediction]:
        """One result per path, in order. A file that cannot be decoded gives a result with `error`."""
        for start in range(0, len(paths), batch_size):
            yield from self._predict_batch([str(path) for path in paths[start : start + batch_size]])

    def _predict_batch(self, paths: list[str]) -> list[Prediction]:
        views: list[torch.Tensor] = []
        results: list[Prediction | None] = []
        for path in paths:
            try:
                views.append(self.info.preprocess.eval_view(self.info.preprocess.decode(Path(path).read_bytes())))
                results.append(None)
            except (UnreadableImage, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                results.append(Prediction(path, None, None, reason))
        if not views:
            return [result for result in results if result is not None]
        rows = iter(self._probabilities(torch.stack(views)).tolist())
        return [result or self._named(path, next(rows)) for path, result in zip(paths, results, strict=True)]

    @torch.inference_mode()
    def _probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, S, S) -> (n, C) float64."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.info.mixed_precision)
        normal = self.info.preprocess.normalize(pixels.to(self.device).contiguous(memory_format=self._layout))
        # a model trained in fp16 on a GPU is computed in fp32 on a CPU, which has no fp16 autocast
        enabled = dtype is not None and not (dtype == torch.float16 and self.device.type == "cpu")
        with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
            logits: torch.Tensor = self.model(normal)
        return logits.double().softmax(dim=1).cpu()

    def _named(self, path: str, row: list[float]) -> Prediction:
        best = max(range(len(row)), key=row.__getitem__)
        return Prediction(path, self.classes[best], dict(zip(self.classes, row, strict=True)))


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
    results = list(predictor.predict(paths, batch_size=batch_size))
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
            table.add_row(result.path, result.predicted, f"{result.confidence:.3f}")
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
                    "predicted": result.predicted,
                    "probabilities": result.probabilities,
                }
                lines.write(json.dumps(record | {"error": result.error}, ensure_ascii=False) + "\n")
        return
    columns: dict[str, Any] = {
        "path": [result.path for result in results],
        "predicted": pa.array([result.predicted for result in results], pa.string()),
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
