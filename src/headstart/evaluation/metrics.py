"""Metrics as `evaluate` modules that live here: nothing is loaded from a hub, nothing needs a network.

Each is computed once, over the whole table of predictions, on the main process.
"""

import tempfile
import uuid
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from headstart.evaluation.statistics import log_loss


class _LabelMetric(evaluate.Metric):  # type: ignore[misc, unused-ignore]
    """predictions and references: class codes, int32. compute(..., num_classes=C)."""

    description: ClassVar[str]
    citation: ClassVar[str] = ""

    def _info(self) -> evaluate.MetricInfo:
        codes = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description="predictions, references: class codes; num_classes: how many there are",
            features=datasets.Features({"predictions": codes, "references": codes}),
        )


class ConfusionMatrix(_LabelMetric):
    description = "counts[i][j]: samples of class i predicted as class j"

    def _compute(self, predictions: Any, references: Any, num_classes: int) -> dict[str, Any]:
        return {"confusion_matrix": _counts(predictions, references, num_classes).tolist()}


class Accuracy(_LabelMetric):
    description = "share of samples predicted right, with the counts that it is made of"

    def _compute(self, predictions: Any, references: Any, num_classes: int) -> dict[str, Any]:
        correct = int(np.trace(_counts(predictions, references, num_classes)))
        return {"n": len(references), "correct": correct, "accuracy": correct / len(references)}


class BalancedAccuracy(_LabelMetric):
    description = "mean recall over the classes that occur (Brodersen et al. 2010)"

    def _compute(self, predictions: Any, references: Any, num_classes: int) -> dict[str, Any]:
        counts = _counts(predictions, references, num_classes)
        present = counts.sum(axis=1) > 0
        return {"balanced_accuracy": float(_recall(counts)[present].mean())}


class MacroF1(_LabelMetric):
    description = "mean F1 over the classes that occur or are predicted; 0 where precision and recall are 0"

    def _compute(self, predictions: Any, references: Any, num_classes: int) -> dict[str, Any]:
        counts = _counts(predictions, references, num_classes)
        support = counts.sum(axis=0) + counts.sum(axis=1)
        f1 = _ratio(2 * np.diag(counts), support)
        return {"macro_f1": float(f1[support > 0].mean())}


class PerClass(_LabelMetric):
    description = "precision and recall of each class; 0 where nothing is predicted or nothing is there"

    def _compute(self, predictions: Any, references: Any, num_classes: int) -> dict[str, Any]:
        counts = _counts(predictions, references, num_classes)
        precision = _ratio(np.diag(counts), counts.sum(axis=0))
        return {"precision": precision.tolist(), "recall": _recall(counts).tolist()}


class _ProbabilityMetric(evaluate.Metric):  # type: ignore[misc, unused-ignore]
    """predictions: a probability per class, float64; references: class codes, int32."""

    description: ClassVar[str]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions: one probability per class; references: class codes",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int32"),
                }
            ),
        )


class LogLoss(_ProbabilityMetric):
    description = "mean of -ln(probability of the true class); the sum is divided once"

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {"loss": log_loss(np.asarray(predictions), np.asarray(references))}


class Top5Accuracy(_ProbabilityMetric):
    description = "share of samples whose class is among the five most probable"

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        five = np.argsort(-np.asarray(predictions), axis=1, kind="stable")[:, :5]
        hits = (five == np.asarray(references)[:, None]).any(axis=1)
        return {"top5_accuracy": int(hits.sum()) / len(references)}


_OF_LABELS = (Accuracy, BalancedAccuracy, MacroF1, PerClass, ConfusionMatrix)


def measure(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """All metrics of one table. probabilities: (n, C) float64; labels: (n,) int, -> names to plain values."""
    num_classes = probabilities.shape[1]
    of_probabilities = (LogLoss, Top5Accuracy) if num_classes > 5 else (LogLoss,)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="headstart-") as cache:
        # keep_in_memory still makes a directory, and the home folder may be read-only
        settings = {"keep_in_memory": True, "cache_dir": cache, "seed": 0}
        predicted = probabilities.argmax(axis=1)
        for kind in _OF_LABELS:
            metric = kind(experiment_id=uuid.uuid4().hex, **settings)
            results |= metric.compute(predictions=predicted, references=labels, num_classes=num_classes)
        for kind in of_probabilities:
            metric = kind(experiment_id=uuid.uuid4().hex, **settings)
            results |= metric.compute(predictions=probabilities, references=labels)
    return results


def _counts(predictions: Any, references: Any, num_classes: int) -> np.ndarray:
    flat = np.asarray(references, dtype=np.int64) * num_classes + np.asarray(predictions, dtype=np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def _recall(counts: np.ndarray) -> np.ndarray:
    return _ratio(np.diag(counts), counts.sum(axis=1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    quotient: np.ndarray = np.divide(part, whole, out=np.zeros(len(whole), dtype=np.float64), where=whole > 0)
    return quotient
