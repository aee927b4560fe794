"""What a run folder says of its run, read once. Knows nothing of how it will be shown."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headstart.config import RunConfig, flat
from headstart.errors import InputError
from headstart.model.model_file import ModelInfo, read_info
from headstart.runs.files import damaged, has, labels_and_probabilities, read_file, read_json, read_table, read_yaml
from headstart.runs.lock import read_lines

SUMMARY = ("val", "best_epoch", "wall_s", "world_size", "device", "mixed_precision", "seed", "model_sha256", "versions")
MEASURED = ("n", "correct", "accuracy", "balanced_accuracy", "macro_f1", "loss")
LINES = {
    "loss": ("step", "lr"),
    "cv_loss": ("l2", "cv_loss_se", "cv_accuracy"),
}  # what comes with what, in metrics.jsonl


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
    def is_correct(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def logits(self) -> np.ndarray:
        """(n, C) float64: a logarithm of a probability is its logit, but for a constant per image that a softmax takes out again."""
        return np.asarray(np.log(np.maximum(self.probabilities, np.finfo(np.float64).tiny)))

    @property
    def chosen_on_val(self) -> bool:
        """Whether the validation images chose among several networks, so that they flatter the one that is kept."""
        if self.info.calibration is not None:
            return not self.info.calibration.conformal.exact
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
    info = read_file(path, "model.safetensors", read_info)
    table = read_table(path, "predictions.parquet")
    labels, probabilities = labels_and_probabilities(path / "predictions.parquet", table, info.classes)
    facts = RunFacts(
        path=path,
        summary=read_json(path, "summary.json") if summary is None else summary,
        config=read_yaml(path, "config.yaml"),
        info=info,
        lines=read_file(path, "metrics.jsonl", read_lines),
        manifest=read_table(path, "manifest.parquet"),
        ids=table.column("id").to_pylist(),
        paths=table.column("path").to_pylist(),
        labels=labels,
        probabilities=probabilities,
        doctor=_find_doctor(path, doctor),
    )
    _check_shapes(facts)
    if facts.doctor is not None and not _is_of_the_same_images(facts.doctor, facts):
        raise InputError(
            f"{(doctor or path) / 'doctor.json'} tells of other images, in {facts.doctor['root']}; name a report of the run's data"
        )
    return facts


def _check_shapes(facts: RunFacts) -> None:
    """Raises InputError naming the file that lacks something which the pages tell."""
    path, num_classes = facts.path / "summary.json", len(facts.classes)
    summary = has(path, facts.summary, SUMMARY)
    has(path, summary["versions"], ["headstart"], where="versions")
    val = has(path, summary["val"], [*MEASURED, "accuracy_ci95", "confusion_matrix"], where="val")
    strange = [name for name in MEASURED if not isinstance(val[name], int | float)]
    if strange:
        raise damaged(path, f"val.{strange[0]} is {val[strange[0]]!r} and no number")
    try:
        shapes = (
            np.array(val["confusion_matrix"], dtype=np.int64).shape,
            np.array(val["accuracy_ci95"], dtype=np.float64).shape,
        )
    except (TypeError, ValueError):
        shapes = (), ()
    if shapes != ((num_classes, num_classes), (2,)):
        raise damaged(
            path, f"val.confusion_matrix or val.accuracy_ci95 does not hold what it should for {num_classes} classes"
        )
    for line in facts.lines:
        has(facts.path / "metrics.jsonl", line, where="a line")
        for name, others in LINES.items():
            if name in line:
                has(facts.path / "metrics.jsonl", line, others, where=f"a line with {name}")
    if facts.strengths():
        has(path, summary.get("probe"), ["l2"], where="probe")
    has(facts.path / "config.yaml", facts.config, ["data"])
    has(facts.path / "config.yaml", facts.config["data"], ["root"], where="data")


def _find_doctor(run: Path, named: Path | None) -> Mapping[str, Any] | None:
    if named is None and not (run / "doctor.json").is_file():
        return None
    path = (named or run) / "doctor.json"
    doctor = has(path, read_json(named or run, "doctor.json"), ["root", "classes", "counts", "findings"])
    for finding in doctor["findings"]:
        has(path, finding, ["kind", "paths", "message"], where="a finding")
    return doctor


def _is_of_the_same_images(doctor: Mapping[str, Any], facts: RunFacts) -> bool:
    """By the place; if that is another one, by the files that were found, or by the classes if nothing was."""
    if Path(doctor["root"]).resolve() == Path(facts.config["data"]["root"]).resolve():
        return True
    found = {path for finding in doctor["findings"] for path in finding["paths"]}
    if found:
        skipped = {one["path"] for one in facts.summary.get("skipped", [])}
        return not found.isdisjoint(skipped.union(facts.manifest.column("path").to_pylist()))
    labels = {part for name in doctor["classes"] for part in (name, name.partition("/")[2])}
    return not labels.isdisjoint(facts.classes)
