"""95% confidence intervals and paired comparisons. Imports numpy, and scipy where a quantile of Student's t is needed.

docs/explanation/statistics.md explains each of them and lists how often each interval contained the true value in
simulations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 2000  # of a bootstrap
_CHUNK = 1 << 22  # random numbers drawn at once
_TAIL = 0.5 - 0.95 / 2  # of a 95% interval
_LEAST_VARIANCE = 0.01  # of the variance of all values: a draw with less has no usable t


def wilson(successes: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): (low, high) in [0, 1]. Raises ValueError if total is 0."""
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} of {total} is not a proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - spread), min(1.0, centre + spread)


def balanced_accuracy_interval(correct: np.ndarray, total: np.ndarray) -> tuple[float, float]:
    """Interval of the mean over classes of correct / total, (C,) counts each; classes without images are left out.

    The squared distances of the classes' Wilson limits from their recall are added (Zou and Donner 2008).
    """
    present = [(hits, count) for hits, count in zip(correct.tolist(), total.tolist(), strict=True) if count]
    shares = np.array([hits / count for hits, count in present])
    limits = np.array([wilson(hits, count) for hits, count in present])  # (classes, 2)
    down, up = (np.sqrt(((limits - shares[:, None]) ** 2).sum(axis=0)) / len(shares)).tolist()
    mean = float(shares.mean())
    return max(0.0, mean - down), min(1.0, mean + up)


def bootstrap(
    values: np.ndarray,
    labels: np.ndarray,
    *,
    lowest: float = -math.inf,
    highest: float = math.inf,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of the mean of (n,) values, such as losses: bootstrap-t (Efron and Tibshirani 1993), drawn within
    classes.

    In each draw every class keeps its number of images; classes of one image are drawn together. The plain percentile
    interval is too short for losses, because many draws miss the few large values. If the share of draws with almost
    no variance exceeds that of one tail, the interval is Student's t instead. lowest, highest: the range of possible
    means, to which the interval is clipped. None if the values do not vary within classes: then their spread is
    unknown."""
    strata = [values[rows].astype(np.float64) for rows in _strata(labels)]
    if all(np.ptp(ours) == 0 for ours in strata):
        return None
    rng = np.random.default_rng(seed)
    count = len(values)
    mean, variance = 0.0, 0.0
    means, variances = np.zeros(draws), np.zeros(draws)
    for ours in strata:
        size, share = len(ours), len(ours) / count
        mean += share * float(ours.mean())
        variance += share**2 * float(ours.var()) / size
        at_once = max(1, _CHUNK // size)
        for start in range(0, draws, at_once):
            drawn = ours[rng.integers(0, size, (min(at_once, draws - start), size))]
            rows = slice(start, start + len(drawn))
            means[rows] += share * drawn.mean(axis=1)
            variances[rows] += share**2 * drawn.var(axis=1) / size
    varies = variances > _LEAST_VARIANCE * variance
    if (~varies).mean() > _TAIL:
        unbiased = sum((len(ours) / count) ** 2 * float(ours.var(ddof=1)) / len(ours) for ours in strata)
        reach = student_t(1 - _TAIL, count - len(strata)) * math.sqrt(unbiased)
        low, high = mean - reach, mean + reach
    else:
        scaled = (means[varies] - mean) / np.sqrt(variances[varies])
        least, most = np.quantile(scaled, [_TAIL, 1 - _TAIL])
        low, high = mean - float(most) * math.sqrt(variance), mean - float(least) * math.sqrt(variance)
    return max(low, lowest), min(high, highest)


def _strata(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each class, (n,) bool each. Classes of one image form one stratum; if there is only one of them, it
    joins the smallest class."""
    names, sizes = np.unique(labels, return_counts=True)
    alone = np.isin(labels, names[sizes == 1])
    strata = [labels == name for name in names[sizes > 1]]
    if alone.sum() == 1 and strata:
        strata.sort(key=lambda rows: int(rows.sum()))
        strata[0] = strata[0] | alone
    elif alone.any():
        strata.append(alone)
    return strata


def mean_interval(values: Sequence[float], *, overlap: float = 0.0) -> tuple[float, float] | None:
    """Student's t interval of the mean of a few values, None for fewer than two.

    overlap: validation images / training images of runs that share training images, and are therefore not independent:
    the variance of their mean is larger (Nadeau and Bengio 2003). 0 for independent values.
    """
    count = len(values)
    if count < 2:
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) * math.sqrt(1 / count + overlap)
    reach = student_t(0.975, count - 1) * spread
    return mean - reach, mean + reach


def student_t(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution with so many degrees of freedom."""
    from scipy.special import stdtrit  # takes 0.25 s to import, and most runs do not need it

    return float(stdtrit(degrees, probability))


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same images. gained: images that only the second classifies correctly; lost: only the
    first.

    difference: accuracy of the second less that of the first; ci95: its interval (Newcombe 1998); p_value: of the
    two-sided exact McNemar test.
    """

    gained: int
    lost: int
    difference: float
    ci95: tuple[float, float]
    p_value: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the difference is significant at p < 0.05."""
        return self.p_value < 0.05


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two classifiers image by image (McNemar 1947, exact binomial). first, second: (n,) correct or not."""
    both = sum(a and b for a, b in zip(first, second, strict=True))
    return paired_counts(gained=int(sum(second) - both), lost=int(sum(first) - both), both=int(both), total=len(first))


def paired_counts(*, gained: int, lost: int, both: int, total: int) -> Paired:
    """`paired`, from the numbers of images that only the second, only the first, and both classify correctly."""
    differ = gained + lost
    tail = sum(math.comb(differ, k) for k in range(min(gained, lost) + 1)) / 2**differ
    interval = newcombe(gained=gained, lost=lost, both=both, total=total)
    return Paired(gained, lost, (gained - lost) / total, interval, min(1.0, 2 * tail))


def newcombe(*, gained: int, lost: int, both: int, total: int) -> tuple[float, float]:
    """Interval of the difference of two proportions on the same images (Newcombe 1998, method 10): it combines the two
    Wilson intervals and the correlation of the two."""
    first, second = both + lost, both + gained
    low1, high1 = wilson(first, total)
    low2, high2 = wilson(second, total)
    share1, share2 = first / total, second / total
    neither = total - both - gained - lost
    product = first * (total - first) * second * (total - second)
    excess = float(both * neither - gained * lost)
    if excess > 0:
        excess = max(excess - total / 2, 0.0)
    phi = excess / math.sqrt(product) if product else 0.0
    up1, down1, up2, down2 = high1 - share1, share1 - low1, high2 - share2, share2 - low2
    down = math.sqrt(max(0.0, down2**2 - 2 * phi * down2 * up1 + up1**2))
    up = math.sqrt(max(0.0, up2**2 - 2 * phi * up2 * down1 + down1**2))
    return share2 - share1 - down, share2 - share1 + up


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of comparisons (Holm 1979), in the order given; compare each with 0.05."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def images_needed(*, gained: int, lost: int, total: int, power: float = 0.8, level: float = 0.05) -> int | None:
    """The number of validation images with which the exact McNemar test detects the observed difference, if it is real,
    with at least the probability `power`. None if no difference was observed.

    Connor (1987), with the correction for continuity: without it the formula is more optimistic than the exact test."""
    if gained == lost:
        return None
    differ, difference = (gained + lost) / total, abs(gained - lost) / total
    z_level, z_power = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(power)
    reach = z_level * math.sqrt(differ) + z_power * math.sqrt(differ - difference**2)
    # n difference - 1 = reach sqrt(n)
    return math.ceil(((reach + math.sqrt(reach**2 + 4 * difference)) / (2 * difference)) ** 2)
