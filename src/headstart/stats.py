"""Numbers from tables, and what they are worth: log loss, intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


def wilson(successes: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): (low, high) in [0, 1]. Raises ValueError if total is 0."""
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} of {total} is not a proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - spread), min(1.0, centre + spread)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """(n, C) float64, (n,) int -> mean negative log likelihood in nats; finite also for a probability of 0."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).sum() / len(labels))


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same samples. gained: only the second is right; lost: only the first is.

    difference: of the accuracies, second - first; ci95: its interval given how many samples the two differ on;
    p_value: two-sided exact McNemar test.
    """

    gained: int
    lost: int
    difference: float
    ci95: tuple[float, float]
    p_value: float

    @property
    def beyond_chance(self) -> bool:
        return self.p_value < 0.05


def paired(first_right: Sequence[bool], second_right: Sequence[bool]) -> Paired:
    """Compare two classifiers sample by sample (McNemar 1947, by the exact binomial)."""
    gained = sum(b and not a for a, b in zip(first_right, second_right, strict=True))
    lost = sum(a and not b for a, b in zip(first_right, second_right, strict=True))
    differ, total = gained + lost, len(first_right)
    if differ == 0:
        return Paired(0, 0, 0.0, (0.0, 0.0), 1.0)
    tail = sum(math.comb(differ, k) for k in range(min(gained, lost) + 1)) / 2**differ
    low, high = ((2 * share - 1) * differ / total for share in wilson(gained, differ))
    return Paired(gained, lost, (gained - lost) / total, (low, high), min(1.0, 2 * tail))
