"""What a run folder says of its run, read once. Knows nothing of how it will be shown."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from headstart.artifacts import ModelInfo, read_info
from headstart.config import RunConfig, flat
from headstart.errors import InputError
from headstart.running import read_lines

_T = TypeVar("_T")


@dataclass(frozen=True)
class RunFacts:
    """The files of a finished run. predictions.parquet is here as arrays in its own order: `ids` and `paths` of the validation images,
    `labels` (n,) int64 and `probabilities` (n, C) float64 in the order of `classes`."""

    path: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    info: ModelInfo
    lines: list[dict[str, Any]]
    manifest: pa.Table
    ids: list[str]
    paths: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    doctor: Mapping[str, Any] | None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @cached_property
    def predicted(self) -> np.ndarray:
        """(n,) int64."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def confidence(self) -> np.ndarray:
        """(n,) float64: the probability of the answer."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def right(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def logits(self) -> np.ndarray:
        """(n, C) float64: a logarithm of a probability is its logit, but for a constant per image that a softmax takes out again."""
        return np.asarray(np.log(np.maximum(self.probabilities, np.finfo(np.float64).tiny)))

    @property
    def chosen_on_val(self) -> bool:
        """Whether the validation images chose among several networks, so that they flatter the one that is kept."""
        return len(self.epochs()) > 1

    @cached_property
    def trained_on(self) -> dict[str, int]:
        """Training images per class."""
        rows = zip(self.manifest.column("split").to_pylist(), self.manifest.column("label").to_pylist(), strict=True)
        return dict(Counter(label for split, label in rows if split == "train"))

    def changed_keys(self) -> dict[str, Any]:
        """What the configuration sets differently from its defaults, but for names of places; dotted key -> value."""
        defaults = flat(asdict(RunConfig()))
        return {
            key: value
            for key, value in flat(self.config).items()
            if key not in ("out", "seed") and (key not in defaults or defaults[key] != value)
        }

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that end an epoch."""
        return [line for line in self.lines if "epoch" in line]

    def steps(self) -> list[dict[str, Any]]:
        """Those of single optimizer steps."""
        return [line for line in self.lines if "loss" in line]

    def strengths(self) -> list[dict[str, Any]]:
        """Those of a cross-validated choice of probe.l2."""
        return [line for line in self.lines if "cv_loss" in line]


def read_run(path: Path, *, summary: Mapping[str, Any] | None = None, doctor: Path | None = None) -> RunFacts:
    """All of a finished run. summary: what summary.json is going to hold, if it is not there yet; doctor: a folder that
    `headstart data check --out` wrote, by default the run folder if it holds such a report.

    Raises InputError naming the file that is missing or damaged."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; name a finished run folder")
    info = _read(path, "model.safetensors", read_info)
    table = _read(path, "predictions.parquet", pq.read_table)
    code = {name: place for place, name in enumerate(info.classes)}
    labels = table.column("label").to_pylist()
    strange = sorted(set(labels) - set(code))
    if strange:
        raise InputError(f"{path}: predictions.parquet has classes that model.safetensors lacks ({', '.join(strange)})")
    return RunFacts(
        path=path,
        summary=_read(path, "summary.json", _json) if summary is None else summary,
        config=_read(path, "config.yaml", lambda file: yaml.safe_load(file.read_text(encoding="utf-8"))),
        info=info,
        lines=_read(path, "metrics.jsonl", read_lines),
        manifest=_read(path, "manifest.parquet", pq.read_table),
        ids=table.column("id").to_pylist(),
        paths=table.column("path").to_pylist(),
        labels=np.array([code[label] for label in labels], dtype=np.int64),
        probabilities=_matrix(table.column("probabilities"), width=len(info.classes)),
        doctor=_find_doctor(path, doctor),
    )


def _find_doctor(run: Path, named: Path | None) -> Mapping[str, Any] | None:
    if named is not None:
        return _read(named, "doctor.json", _json)
    return _read(run, "doctor.json", _json) if (run / "doctor.json").is_file() else None


def _json(path: Path) -> Mapping[str, Any]:
    values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _read(folder: Path, name: str, read: Callable[[Path], _T]) -> _T:
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder} has no {name}; name a finished run folder, or a copy that is whole")
    try:
        return read(path)
    except (OSError, ValueError, pa.ArrowException, yaml.YAMLError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); use a copy of it") from None


def _matrix(column: pa.ChunkedArray, *, width: int) -> np.ndarray:
    """n lists of `width` float64 -> (n, width)."""
    flat = column.combine_chunks().flatten()
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, width)
