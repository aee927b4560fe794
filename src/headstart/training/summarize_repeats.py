"""The summary of the same recipe with several seeds or on every fold: mean, spread, intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.config import RunConfig
from headstart.data.samples import COLUMNS, Sample, Samples
from headstart.errors import InputError
from headstart.evaluation.predictions import Predictions, describe
from headstart.evaluation.statistics import mean_interval, wilson
from headstart.report.comparison import EvaluatedRun, read_evaluated_run
from headstart.runs.folder import RunFolder, predictions_table
from headstart.runs.summary import RepeatsSummary, Summary
from headstart.runtime.accelerator import versions


@dataclass(frozen=True)
class Repeat:
    """One of the runs. folder: its name in the folder of all runs."""

    folder: str
    config: RunConfig
    summary: Summary


def summarize_repeats(config: RunConfig, path: Path, repeats: Sequence[Repeat], *, wall_s: float) -> RepeatsSummary:
    """Also writes the pooled predictions of folds to `path`. Raises InputError if the images changed between folds."""
    summaries = [repeat.summary for repeat in repeats]
    first, folds = summaries[0], config.train.folds
    vals = [summary.val for summary in summaries]
    accuracies, losses = [val["accuracy"] for val in vals], [val["loss"] for val in vals]
    same_images = len({summary.manifest_sha256 for summary in summaries}) == 1
    if folds:
        val = _pool_folds(path, [read_evaluated_run(str(path / repeat.folder)) for repeat in repeats])
        overlap = 1 / (folds - 1)
    elif same_images:
        num_images, mean_correct = vals[0]["n"], float(np.mean([val["correct"] for val in vals]))
        val = {
            "n": num_images,
            "accuracy": float(np.mean(accuracies)),
            # of the mean: more seeds do not make more images
            "accuracy_ci95": wilson(round(mean_correct), num_images),
            "loss": float(np.mean(losses)),
        }
        overlap = 0.0
    else:
        count, correct = sum(val["n"] for val in vals), sum(val["correct"] for val in vals)
        val = {
            "n": count,
            "correct": correct,
            "accuracy": correct / count,
            "accuracy_ci95": None,  # an image may be in several runs, so the predictions are not independent
            "loss": sum(val["n"] * val["loss"] for val in vals) / count,
        }
        overlap = count / sum(summary.train["n"] for summary in summaries)
    limits = mean_interval(accuracies, overlap=overlap)
    if limits is None or min(accuracies) == max(accuracies):
        interval, method = None, "none, as all runs have the same accuracy"
    else:
        interval = [max(0.0, limits[0]), min(1.0, limits[1])]
        method = "t" if overlap == 0 else "t, corrected for overlapping training images"
    return RepeatsSummary(
        repeats="folds" if folds else "seeds",
        strategy=first.strategy,
        backbone=first.backbone,
        classes=first.classes,
        seed=config.seed,
        epochs=first.epochs,
        weights=first.weights,
        same_images=same_images,
        # the probe that tuning starts from is one of those to choose from
        epoch_chosen_on_val=first.epochs + ("tuning_kept" in (first.probe or {})) > 1,
        runs=[
            {
                "folder": repeat.folder,
                "seed": repeat.config.seed,
                **({"fold": repeat.config.data.fold} if folds else {}),
                **{key: repeat.summary.val[key] for key in ("n", "correct", "accuracy", "loss")},
                "best_epoch": repeat.summary.best_epoch,
                "wall_s": repeat.summary.wall_s,
            }
            for repeat in repeats
        ],
        spread={
            "accuracy": _spread(accuracies) | {"ci95": interval, "ci95_is": method},
            "loss": _spread(losses),
        },
        val=val,
        versions=versions(),
        wall_s=wall_s,
    )


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)),
        "lowest": min(values),
        "highest": max(values),
    }


def _pool_folds(path: Path, runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """Every image once, by the network that was not trained on it: predictions.parquet, manifest.parquet, and the
    metrics.

    Raises InputError if an image was evaluated in two folds: then the data changed between the runs."""
    seen: dict[tuple[str, str, int], str] = {}
    samples: list[Sample] = []
    for run in runs:
        for key, name in zip(run.keys, run.paths, strict=True):
            if key in seen:
                raise InputError(
                    f"{name} was evaluated in {run.path} and in {seen[key]}: the images changed between the runs; "
                    "start again in another --out"
                )
            seen[key] = run.path
            content, label, _ = key
            samples.append(Sample(f"{content[:16]}-{len(samples)}", name, content, "val", label))
    probabilities = np.concatenate([run.probabilities for run in runs])
    labels = np.concatenate([run.labels for run in runs])
    folder, classes = RunFolder(path), runs[0].classes
    table = Samples.of(samples, [], None).table  # type: ignore[arg-type]
    folder.write_table("manifest.parquet", table.select(COLUMNS))
    folder.write_table(
        "predictions.parquet",
        predictions_table(
            ids=[sample.id for sample in samples],
            paths=[sample.path for sample in samples],
            labels=[sample.label for sample in samples],
            probabilities=probabilities,
            classes=classes,
        ),
    )
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return describe(Predictions(logits, labels), classes)
