"""Metrics of a table of predictions, as plain functions of arrays. Imports numpy alone.

evaluate_metrics.py wraps the same functions for users of the `evaluate` library.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15  # of the calibration error; fewer where a bin would hold less than 20 images
_CHUNK = 1 << 22  # random numbers drawn at once


def compute(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """All metrics of one table by name, as plain numbers and lists. probabilities: (n, C) float64; labels: (n,) int.

    `top5_accuracy` is only there for more than five classes.
    """
    counts = confusion_matrix(probabilities.argmax(axis=1), labels, num_classes=probabilities.shape[1])
    return of_counts(counts) | of_probabilities(probabilities, labels)


def of_counts(counts: np.ndarray) -> dict[str, Any]:
    """The metrics of a confusion matrix (C, C). Precision is None for a class that is never predicted, recall for one
    without images."""
    correct, total = int(np.trace(counts)), int(counts.sum())
    return {
        "n": total,
        "correct": correct,
        "accuracy": correct / total,
        "balanced_accuracy": balanced_accuracy(counts),
        "macro_f1": macro_f1(counts),
        "precision": [None if np.isnan(value) else value for value in precision(counts).tolist()],
        "recall": [None if np.isnan(value) else value for value in recall(counts).tolist()],
        "confusion_matrix": counts.tolist(),
    }


def of_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The metrics of (n, C) float64 probabilities for (n,) int labels."""
    values = {"loss": log_loss(probabilities, labels)}
    return {"top5_accuracy": top5_accuracy(probabilities, labels), **values} if probabilities.shape[1] > 5 else values


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, *, num_classes: int) -> np.ndarray:
    """(n,) int, (n,) int -> (C, C) int64: images of class i (row) that are predicted as class j (column)."""
    flat = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def balanced_accuracy(counts: np.ndarray) -> float:
    """The mean recall over the classes that occur (Brodersen et al. 2010)."""
    return float(recall(counts)[counts.sum(axis=1) > 0].mean())


def macro_f1(counts: np.ndarray) -> float:
    """The mean F1 over the classes that occur or are predicted; 0 where precision and recall are 0."""
    support = counts.sum(axis=0) + counts.sum(axis=1)
    return float(_ratio(2 * np.diag(counts), support)[support > 0].mean())


def precision(counts: np.ndarray) -> np.ndarray:
    """(C,) float64; NaN for a class that is never predicted."""
    return _ratio(np.diag(counts), counts.sum(axis=0))


def recall(counts: np.ndarray) -> np.ndarray:
    """(C,) float64; NaN for a class without images."""
    return _ratio(np.diag(counts), counts.sum(axis=1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0))


def top5_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose class is among the five most probable. (n, C) float64, (n,) int."""
    five = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    return int((five == labels[:, None]).any(axis=1).sum()) / len(labels)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, C) float64, (n,) int -> (n,) negative log likelihood in nats; finite also for a probability of 0."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(log_losses(probabilities, labels).sum() / len(labels))


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, C) float64, (n,) int -> (n,) squared distance of the probabilities from the true class, in [0, 2]
    (Brier 1950)."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray((probabilities**2).sum(axis=1) - 2 * chosen + 1)


@dataclass(frozen=True)
class CalibrationError:
    """ece: the debiased difference between confidence and accuracy; ece_by_chance95: the value that 95% of perfectly
    calibrated models with the same confidences do not exceed on so many images."""

    ece: float
    ece_by_chance95: float


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> CalibrationError:
    """Of the most probable class, in bins of equal size. (n, C) float64, (n,) int.

    ece: the mean over bins of |confidence - accuracy|. Chance alone makes it larger, so its expected increase when the
    accuracies are drawn again is subtracted (Kumar, Liang and Ma 2019, "Verified Uncertainty Calibration"); at least 0.
    Chance: labels are drawn from the probabilities (consistency resampling, Broecker and Smith 2007).
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(confidence, kind="stable")
    confidence, correct = confidence[order], (probabilities.argmax(axis=1) == labels)[order]
    count = len(labels)
    num_bins = max(1, min(BINS, count // 20))
    starts = np.arange(num_bins) * count // num_bins
    sizes = np.diff([*starts, count])
    confidences = np.add.reduceat(confidence, starts) / sizes

    def ece(correct: np.ndarray) -> np.ndarray:
        """(draws, n) bool -> (draws,)."""
        accuracies = np.add.reduceat(correct.astype(np.float64), starts, axis=1) / sizes
        gaps = np.abs(accuracies - confidences)
        spreads = np.sqrt(np.maximum(accuracies * (1 - accuracies), 1e-12) / sizes)
        # the mean of the absolute value of a normal variable around the gap
        redrawn = spreads * math.sqrt(2 / math.pi) * np.exp(-(gaps**2) / (2 * spreads**2))
        redrawn += gaps * _erf(gaps / (spreads * math.sqrt(2)))
        return np.asarray(np.maximum(((2 * gaps - redrawn) * sizes).sum(axis=1) / count, 0.0))

    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // count)
    chance = [ece(rng.random((min(at_once, 1000 - done), count)) < confidence) for done in range(0, 1000, at_once)]
    return CalibrationError(float(ece(correct[None])[0]), float(np.quantile(np.concatenate(chance), 0.95)))


_erf = np.vectorize(math.erf, otypes=[np.float64])  # 15,000 values at most; importing scipy's takes longer
