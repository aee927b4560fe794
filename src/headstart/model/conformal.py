"""Limits on scores that new images exceed at a known rate, and sets of classes from them. Imports numpy alone.

Split conformal prediction (Vovk et al. 2005): the set of all classes above a threshold on their probability contains
the true class with the promised probability. The score is that of Sadinle, Lei and Wasserman (2019).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.model.softmax import log_softmax

CONFIDENCE = 0.9  # of a set of classes, by default
CONFIDENCES = (0.8, 0.9, 0.95, 0.99)

Limits = Mapping[float, float | None]
"""A limit for each confidence or share. None: there are too few images for a limit at that level."""


@dataclass(frozen=True)
class Conformal:
    """Sets of classes. limits: for each of CONFIDENCES the largest -log(probability) that is still in the set; None
    stands for all classes.

    The probabilities are those of the raw logits, so a temperature that was fitted on the same images does not affect
    the guarantee. exact: whether the n images were not used in training at all; False if they chose the epoch.
    """

    limits: Limits
    n: int
    exact: bool

    def sets(self, logits: np.ndarray, *, confidence: float = CONFIDENCE) -> np.ndarray:
        """(n, C) any float -> (n, C) bool. The most probable class is always in the set. Raises ValueError for a
        confidence that is not in `limits`."""
        limit = stored_limit(self.limits, confidence, name="confidence")
        surprise = -log_softmax(logits)
        inside = surprise <= (math.inf if limit is None else limit)
        inside[np.arange(len(inside)), surprise.argmin(axis=1)] = True
        return inside

    def to_json(self) -> dict[str, Any]:
        return {"limits": limits_to_json(self.limits), "n": self.n, "exact": self.exact}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Conformal":
        return Conformal(limits_from_json(values["limits"]), int(values["n"]), bool(values["exact"]))


def fit_conformal(logits: np.ndarray, labels: np.ndarray, *, exact: bool) -> Conformal:
    """Limits from images that the model was not trained on. logits: (n, C) any float; labels: (n,) int."""
    surprise = -log_softmax(logits)[np.arange(len(labels)), labels]
    return Conformal({c: upper_limit(surprise, 1 - c) for c in CONFIDENCES}, len(labels), exact)


def upper_limit(scores: np.ndarray, share: float) -> float | None:
    """The limit that a new score, exchangeable with these (n,) scores, exceeds with a probability of at most `share`:
    the ceil((n + 1)(1 - share))-th smallest. None if n is too small for a limit."""
    rank = math.ceil((len(scores) + 1) * (1 - share) - 1e-9)
    return None if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])


def stored_limit(limits: Limits, level: float, *, name: str) -> float | None:
    """The limit of this level. Raises ValueError if the model file does not hold it. name: of the level, for the
    message."""
    if level not in limits:
        known = ", ".join(str(value) for value in limits)
        raise ValueError(f"{name} {level} is not stored in the model; use one of {known}")
    return limits[level]


def limits_to_json(limits: Limits) -> list[list[float | None]]:
    """Pairs, because JSON does not allow numbers as keys."""
    return [[level, limit] for level, limit in limits.items()]


def limits_from_json(pairs: Sequence[tuple[float, float | None]]) -> Limits:
    return {float(level): None if limit is None else float(limit) for level, limit in pairs}
