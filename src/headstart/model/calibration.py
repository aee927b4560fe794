"""The calibration that travels in the header of the model file: a temperature, sets of classes, "none of these".

It is fitted after training. Imports numpy alone. The temperature divides the logits, so that the confidence is the
share of correct predictions (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.model.conformal import CONFIDENCE, Conformal, fit_conformal
from headstart.model.open_set import WRONGLY_FLAGGED, OpenSet, fit_open_set
from headstart.model.softmax import softmax

LARGEST_TEMPERATURE = 100.0  # its inverse is the smallest one


@dataclass(frozen=True)
class Calibration:
    """What the model file holds besides the network. temperature: the divisor of the logits; fitted_on: "out-of-fold
    logits" of n training images, or "validation logits" of n validation images."""

    temperature: float
    fitted_on: str
    n: int
    conformal: Conformal
    open_set: OpenSet | None

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(n, C) any float -> (n, C) float64: calibrated by the temperature; the order of the classes does not
        change."""
        return softmax(np.asarray(logits, dtype=np.float64) / self.temperature)

    def prediction_sets(self, logits: np.ndarray, *, confidence: float = CONFIDENCE) -> np.ndarray:
        """(n, C) bool: see Conformal.sets."""
        return self.conformal.sets(logits, confidence=confidence)

    def distance(self, features: np.ndarray) -> np.ndarray | None:
        """(n,) float64: see OpenSet.distance; None if the file holds no reference features."""
        return None if self.open_set is None else self.open_set.distance(features)

    def is_none_of_these(self, features: np.ndarray, *, wrongly_flagged: float = WRONGLY_FLAGGED) -> np.ndarray | None:
        """(n,) bool: see OpenSet.is_none_of_these; None if the file holds no reference features or no limit."""
        if self.open_set is None:
            return None
        return self.open_set.is_none_of_these(features, wrongly_flagged=wrongly_flagged)

    def to_json(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "n": self.n,
            "conformal": self.conformal.to_json(),
            "open_set": None if self.open_set is None else self.open_set.to_json(),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Calibration":
        """Raises KeyError, TypeError or ValueError if it is not what to_json wrote."""
        open_set = values["open_set"]
        return Calibration(
            temperature=float(values["temperature"]),
            fitted_on=values["fitted_on"],
            n=int(values["n"]),
            conformal=Conformal.from_json(values["conformal"]),
            open_set=None if open_set is None else OpenSet.from_json(open_set),
        )


def calibrate(
    logits: np.ndarray,
    labels: np.ndarray,
    features: np.ndarray | None,
    *,
    chosen_on_val: bool,
    out_of_fold: tuple[np.ndarray, np.ndarray] | None = None,
    others: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit everything on the (n, C) logits, (n,) labels and (n, d) features of the validation images.

    chosen_on_val: whether these images chose the epoch; out_of_fold: logits and labels of training images, from heads
    that were not trained on them, for the temperature; others: as in fit_open_set.
    """
    source = "validation logits" if out_of_fold is None else "out-of-fold logits"
    fitted_logits, fitted_labels = (logits, labels) if out_of_fold is None else out_of_fold
    return Calibration(
        temperature=fit_temperature(fitted_logits, fitted_labels),
        fitted_on=source,
        n=len(fitted_labels),
        conformal=fit_conformal(logits, labels, exact=not chosen_on_val),
        open_set=None if features is None else fit_open_set(features, labels, others=others, seed=seed),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T with the smallest log loss of softmax(logits / T). logits: (n, C) any float; labels: (n,) int.

    A normal prior on log T with standard deviation 1 weighs about as much as one image. Without it a model without
    errors would get infinite confidence. Newton's method for b = -log T, with bisection where a step leaves the
    bracket."""
    wide = np.asarray(logits, dtype=np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    target = float(wide[np.arange(len(labels)), labels].sum())
    low, high, b = -math.log(LARGEST_TEMPERATURE), math.log(LARGEST_TEMPERATURE), 0.0
    for _ in range(100):
        inverse = math.exp(b)
        probabilities = softmax(inverse * wide)
        mean = (probabilities * wide).sum(axis=1)
        by_inverse = float(mean.sum()) - target  # derivative of the summed losses by 1 / T
        slope = inverse * by_inverse + b
        low, high = (low, b) if slope > 0 else (b, high)
        spread = float((probabilities * wide**2).sum() - (mean**2).sum())
        curvature = inverse * by_inverse + inverse**2 * spread + 1
        step = b - slope / curvature if curvature > 0 else math.inf
        before, b = b, step if low < step < high else (low + high) / 2
        if abs(b - before) < 1e-10:
            break
    return math.exp(-b)


def cross_fitted(logits: np.ndarray, labels: np.ndarray, *, parts: int = 10) -> np.ndarray:
    """(n, C) float64 probabilities, each tenth of the images with the temperature of the other nine: the temperature's
    effect on images that it was not fitted on."""
    probabilities = np.empty(logits.shape)
    part = np.arange(len(labels)) % min(parts, len(labels))
    for number in range(part.max() + 1):
        out = part == number
        temperature = fit_temperature(logits[~out], labels[~out])
        probabilities[out] = softmax(logits[out].astype(np.float64) / temperature)
    return probabilities
