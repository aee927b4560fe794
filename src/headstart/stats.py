"""Numbers from tables, and what they are worth: log loss, intervals."""

import math
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
