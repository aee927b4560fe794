"""A finished run, read once from the files of its folder. Knows nothing about how it will be shown."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headstart.backbones import RESNET18
from headstart.config import RunConfig, flat
from headstart.errors import InputError
from headstart.model.backbones import find_backbone
from headstart.model.model_file import ModelInfo, read_info
from headstart.runs.about import About, read_about
from headstart.runs.files import (
    damaged,
    labels_and_probabilities,
    mapping_with,
    read_file,
    read_json,
    read_metrics,
    read_table,
    read_yaml,
)
from headstart.runs.lock import SUMMARY
from headstart.runs.summary import Summary

METRICS = ("n", "correct", "accuracy", "balanced_accuracy", "macro_f1", "loss")
LINES = {"loss": ("step", "lr"), "cv_loss": ("l2", "cv_loss_se", "cv_accuracy")}
"""The keys that a line of metrics.jsonl has beside the one it is recognised by."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedImages:
    """The predictions of a model for labelled images: `paths`, `labels` (n,) int64, and `probabilities` (n, C) float64
    in the order of `classes`. sha256: of each file, by path."""

    info: ModelInfo
    model_file: Path
    paths: list[str]
    sha256: Mapping[str, str]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @cached_property
    def predicted(self) -> np.ndarray:
        """(n,) int64."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def confidence(self) -> np.ndarray:
        """(n,) float64: the probability of the predicted class."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def is_correct(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def logits(self) -> np.ndarray:
        """(n, C) float64: the log probabilities, which differ from the logits by a constant per image."""
        return np.asarray(np.log(np.maximum(self.probabilities, np.finfo(np.float64).tiny)))


@dataclass(frozen=True, kw_only=True)
class FinishedRun(EvaluatedImages):
    """The files of a finished run. The predictions of predictions.parquet are in its own order. about: purpose and
    author, as `headstart report` stored them."""

    path: Path
    summary: Summary
    config: Mapping[str, Any]
    lines: list[dict[str, Any]]
    manifest: pa.Table
    doctor: Mapping[str, Any] | None
    about: About

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def chosen_on_val(self) -> bool:
        """Whether the validation images selected one of several models, which makes its accuracy optimistic."""
        if self.info.calibration is not None:
            return not self.info.calibration.conformal.exact
        return len(self.epochs()) > 1

    @cached_property
    def num_training_images(self) -> dict[str, int]:
        """By class."""
        rows = zip(self.manifest.column("split").to_pylist(), self.manifest.column("label").to_pylist(), strict=True)
        return dict(Counter(label for split, label in rows if split == "train"))

    def changed_keys(self) -> dict[str, Any]:
        """By dotted key: the values of the configuration that differ from the defaults, without out and seed."""
        return {key: value for key, value in changed_keys(self.config).items() if key not in ("out", "seed")}

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that end an epoch."""
        return [line for line in self.lines if "epoch" in line]

    def steps(self) -> list[dict[str, Any]]:
        """The lines of single optimizer steps."""
        return [line for line in self.lines if "loss" in line]

    def strengths(self) -> list[dict[str, Any]]:
        """The lines of a cross-validated choice of probe.l2."""
        return [line for line in self.lines if "cv_loss" in line]


def changed_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key: the values of the configuration of a run that differ from the defaults. The sizes are compared
    with those of the backbone."""
    values, defaults = flat(config), flat(asdict(RunConfig()))
    backbone = find_backbone(values.get("model.backbone", RESNET18.name))
    _, resize_size = backbone.sizes(values["data.image_size"], None)
    defaults |= {"data.image_size": backbone.image_size, "data.resize_size": resize_size}
    return {key: value for key, value in values.items() if key not in defaults or defaults[key] != value}


def read_run(path: Path, *, summary: Summary | None = None, doctor: Path | None = None) -> FinishedRun:
    """Read a finished run. summary: the content of summary.json if that file is not written yet; doctor: a
    folder that `headstart data check --out` wrote, by default the run folder if it holds such a report.

    Raises InputError naming the file that is missing or damaged."""
    info = read_file(path, "model.safetensors", read_info)
    table = read_table(path, "predictions.parquet")
    labels, probabilities = labels_and_probabilities(path / "predictions.parquet", table, info.classes)
    manifest = read_table(path, "manifest.parquet")
    run = FinishedRun(
        path=path,
        model_file=path / "model.safetensors",
        sha256=dict(zip(manifest.column("path").to_pylist(), manifest.column("sha256").to_pylist(), strict=True)),
        summary=Summary.read(path) if summary is None else summary,
        config=read_yaml(path, "config.yaml"),
        info=info,
        lines=read_file(path, "metrics.jsonl", read_metrics),
        manifest=manifest,
        paths=table.column("path").to_pylist(),
        labels=labels,
        probabilities=probabilities,
        doctor=_read_doctor(path, doctor),
        about=read_about(path),
    )
    _check_shapes(run)
    if run.doctor is not None and not _is_about_the_same_images(run.doctor, run):
        raise InputError(
            f"{(doctor or path) / 'doctor.json'} is about other images, in {run.doctor['root']}; "
            "name a report about the data of this run"
        )
    return run


def _check_shapes(run: FinishedRun) -> None:
    """Raise InputError naming a file that lacks something the pages show."""
    path, num_classes = run.path / SUMMARY, len(run.classes)
    mapping_with(path, run.summary.versions, ["headstart"], where="versions")
    val = mapping_with(path, run.summary.val, [*METRICS, "accuracy_ci95", "confusion_matrix"], where="val")
    for name in METRICS:
        if not isinstance(val[name], int | float):
            raise damaged(path, f"val.{name} is {val[name]!r}, which is not a number")
    for name, shape in (("confusion_matrix", (num_classes, num_classes)), ("accuracy_ci95", (2,))):
        try:
            found = np.array(val[name], dtype=np.float64).shape
        except (TypeError, ValueError):
            found = ()
        if found != shape:
            raise damaged(path, f"val.{name} does not hold numbers of shape {shape} for {num_classes} classes")
    for line in run.lines:
        mapping_with(run.path / "metrics.jsonl", line, where="a line")
        for name, others in LINES.items():
            if name in line:
                mapping_with(run.path / "metrics.jsonl", line, others, where=f"a line with {name}")
    if run.strengths():
        mapping_with(path, run.summary.probe, ["l2"], where="probe")
    mapping_with(run.path / "config.yaml", run.config.get("data"), ["root"], where="data")


def _read_doctor(run: Path, named: Path | None) -> Mapping[str, Any] | None:
    if named is None and not (run / "doctor.json").is_file():
        return None
    path = (named or run) / "doctor.json"
    doctor = mapping_with(path, read_json(named or run, "doctor.json"), ["root", "classes", "counts", "findings"])
    for finding in doctor["findings"]:
        mapping_with(path, finding, ["kind", "paths", "message"], where="a finding")
    return doctor


def _is_about_the_same_images(doctor: Mapping[str, Any], run: FinishedRun) -> bool:
    """By the data folder; if that differs, by the files of the findings; without findings by the classes."""
    if Path(doctor["root"]).resolve() == Path(run.config["data"]["root"]).resolve():
        return True
    found = {path for finding in doctor["findings"] for path in finding["paths"]}
    if found:
        skipped = {one["path"] for one in run.summary.skipped}
        return not found.isdisjoint(skipped.union(run.manifest.column("path").to_pylist()))
    labels = {part for name in doctor["classes"] for part in (name, name.partition("/")[2])}
    return not labels.isdisjoint(run.classes)
