"""Numbers from tables, and what they are worth: losses, calibration error, intervals, paired comparisons. Knows numpy alone.

docs/statistics.md says what each means, and how often each interval was seen to hold the truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 2000  # of a bootstrap
BINS = 15  # of the calibration error, fewer where they would hold less than 20 images each
_CHUNK = 1 << 22  # numbers drawn at once
_HARDLY = 0.01  # of the variance of the images: what a draw of them must have for its t to say anything


def wilson(successes: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): (low, high) in [0, 1]. Raises ValueError if total is 0."""
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} of {total} is not a proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - spread), min(1.0, centre + spread)


def balanced_accuracy_interval(
    right: np.ndarray, total: np.ndarray, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Of the mean over classes of right / total, (C,) counts each; classes without images are left out.

    The classes' Wilson intervals added up by their squared distances from the estimate (Zou and Donner 2008).
    """
    shares, lows, highs = [], [], []
    for successes, count in zip(right.tolist(), total.tolist(), strict=True):
        if count:
            low, high = wilson(successes, count, confidence=confidence)
            shares.append(successes / count)
            lows.append(low)
            highs.append(high)
    mean, parts = float(np.mean(shares)), len(shares)
    down = math.sqrt(sum((share - low) ** 2 for share, low in zip(shares, lows, strict=True))) / parts
    up = math.sqrt(sum((high - share) ** 2 for share, high in zip(shares, highs, strict=True))) / parts
    return max(0.0, mean - down), min(1.0, mean + up)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, C) float64, (n,) int -> (n,) negative log likelihood in nats; finite also for a probability of 0."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of log_losses."""
    return float(log_losses(probabilities, labels).sum() / len(labels))


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, C) float64, (n,) int -> (n,) squared distance between the probabilities and the truth, in [0, 2] (Brier 1950)."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray((probabilities**2).sum(axis=1) - 2 * chosen + 1)


@dataclass(frozen=True)
class CalibrationError:
    """ece: how far confidence and accuracy are apart, by debiased estimate; ece_by_chance95: what 95 of 100 perfectly
    calibrated models with the same confidences would stay below on so many images."""

    ece: float
    ece_by_chance95: float


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> CalibrationError:
    """Of the most probable class, in bins of equal size. (n, C) float64, (n,) int.

    ece: the mean over bins of |confidence - accuracy|, which chance alone makes larger than it is; twice it less what it
    becomes on average when the accuracies are drawn anew (Kumar, Liang and Ma 2019, "Verified Uncertainty Calibration"), at
    least 0. Chance: labels drawn from the probabilities (consistency resampling, Broecker and Smith 2007).
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(confidence, kind="stable")
    confidence, right = confidence[order], (probabilities.argmax(axis=1) == labels)[order]
    count = len(labels)
    num_bins = max(1, min(BINS, count // 20))
    starts = np.arange(num_bins) * count // num_bins
    sizes = np.diff([*starts, count])
    confidences = np.add.reduceat(confidence, starts) / sizes

    def ece(rights: np.ndarray) -> np.ndarray:
        """(draws, n) -> (draws,)."""
        accuracies = np.add.reduceat(rights.astype(np.float64), starts, axis=1) / sizes
        gaps = np.abs(accuracies - confidences)
        spreads = np.sqrt(np.maximum(accuracies * (1 - accuracies), 1e-12) / sizes)
        redrawn = spreads * math.sqrt(2 / math.pi) * np.exp(-(gaps**2) / (2 * spreads**2)) + gaps * _erf(
            gaps / (spreads * math.sqrt(2))
        )  # the mean of |a normal around the gap|
        return np.asarray(np.maximum(((2 * gaps - redrawn) * sizes).sum(axis=1) / count, 0.0))

    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // count)
    chance = [ece(rng.random((min(at_once, 1000 - done), count)) < confidence) for done in range(0, 1000, at_once)]
    return CalibrationError(float(ece(right[None])[0]), float(np.quantile(np.concatenate(chance), 0.95)))


def bootstrap(
    values: np.ndarray,
    labels: np.ndarray,
    *,
    lowest: float = -math.inf,
    highest: float = math.inf,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of the mean of (n,) values, such as losses: bootstrap-t (Efron and Tibshirani 1993), drawn class by class.

    In each draw every class keeps its number of images; classes of one image are drawn together. The plain percentile interval
    is too short for losses, whose few large values often are not drawn. Where more draws than a tail holds hardly vary, so
    that their t says nothing, it is Student's t interval. lowest, highest: what a mean can be; no limit lies beyond.
    None where nothing varies: then nothing says how far off the mean is.
    """
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
    tail = 0.5 - confidence / 2
    varies = variances > _HARDLY * variance
    if (~varies).mean() > tail:
        unbiased = sum((len(ours) / count) ** 2 * float(ours.var(ddof=1)) / len(ours) for ours in strata)
        reach = student_t(1 - tail, count - len(strata)) * math.sqrt(unbiased)
        low, high = mean - reach, mean + reach
    else:
        scaled = (means[varies] - mean) / np.sqrt(variances[varies])
        least, most = np.quantile(scaled, [tail, 1 - tail])
        low, high = mean - float(most) * math.sqrt(variance), mean - float(least) * math.sqrt(variance)
    return max(low, lowest), min(high, highest)


def _strata(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each class, (n,) bool each. Classes of one image are one stratum; a single one joins the smallest class."""
    names, sizes = np.unique(labels, return_counts=True)
    alone = np.isin(labels, names[sizes == 1])
    strata = [labels == name for name in names[sizes > 1]]
    if alone.sum() == 1 and strata:
        strata.sort(key=lambda rows: int(rows.sum()))
        strata[0] = strata[0] | alone
    elif alone.any():
        strata.append(alone)
    return strata


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean of a few independent values, None of fewer than two."""
    if len(values) < 2:
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = student_t(0.5 + confidence / 2, len(values) - 1) * spread
    return mean - reach, mean + reach


def student_t(probability: float, degrees: int) -> float:
    """The value that a t variable of so many degrees of freedom stays below with a probability in (0.5, 1)."""

    def tail(
        value: float,
    ) -> float:  # P(T > value), exactly, by the finite series for whole degrees (Abramowitz-Stegun 26.7)
        angle = math.atan(value / math.sqrt(degrees))
        cosine2, term, total = math.cos(angle) ** 2, 1.0, 0.0
        if degrees % 2:
            term, terms = math.cos(angle), (degrees - 1) // 2
            for k in range(1, terms + 1):
                total += term
                term *= cosine2 * (2 * k) / (2 * k + 1)
            inside = 2 / math.pi * (angle + math.sin(angle) * total)
        else:
            for k in range(1, degrees // 2 + 1):
                total += term
                term *= cosine2 * (2 * k - 1) / (2 * k)
            inside = math.sin(angle) * total
        return (1 - inside) / 2

    low, high = 0.0, 1.0
    while tail(high) > 1 - probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > 1 - probability else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same samples. gained: only the second is right; lost: only the first is.

    difference: of the accuracies, second - first; ci95: its interval (Newcombe 1998); p_value: two-sided exact McNemar test.
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
    both = sum(a and b for a, b in zip(first_right, second_right, strict=True))
    gained, lost = sum(second_right) - both, sum(first_right) - both
    total = len(first_right)
    differ = gained + lost
    tail = sum(math.comb(differ, k) for k in range(min(gained, lost) + 1)) / 2**differ
    interval = newcombe(gained=gained, lost=lost, both=both, total=total)
    return Paired(int(gained), int(lost), (gained - lost) / total, interval, min(1.0, 2 * tail))


def newcombe(*, gained: int, lost: int, both: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two proportions on the same samples (Newcombe 1998, method 10): the two Wilson intervals
    put together with the correlation of the two."""
    first, second = both + lost, both + gained
    low1, high1 = wilson(first, total, confidence=confidence)
    low2, high2 = wilson(second, total, confidence=confidence)
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
    """Adjusted for having looked so many times (Holm 1979), in the order given: comparable with 0.05 each."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def images_needed(*, gained: int, lost: int, total: int, power: float = 0.8, level: float = 0.05) -> int | None:
    """Validation images with which the exact McNemar test finds the difference that was seen, if it is real, with at least this
    probability (Connor 1987, with the correction for continuity, as the exact test is stricter than the formula without it);
    None where no difference was seen."""
    if gained == lost:
        return None
    differ, difference = (gained + lost) / total, abs(gained - lost) / total
    z_level, z_power = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(power)
    reach = z_level * math.sqrt(differ) + z_power * math.sqrt(differ - difference**2)
    # n difference - 1 = reach sqrt(n)
    return math.ceil(((reach + math.sqrt(reach**2 + 4 * difference)) / (2 * difference)) ** 2)


def _erf(values: np.ndarray) -> np.ndarray:
    """numpy has none; Abramowitz and Stegun 7.1.26 for values >= 0, right to 1.5e-7."""
    t = 1 / (1 + 0.3275911 * values)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return np.asarray(1 - series * np.exp(-(values**2)))
