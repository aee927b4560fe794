"""What a model may say beyond its best guess: honest probabilities, sets of classes, "none of these". Knows numpy alone.

Three numbers and tables that are fitted after training and travel in the header of the model file:

- a temperature that the logits are divided by (Guo et al. 2017, "On Calibration of Modern Neural Networks"),
- a threshold on the probability of a class, so that the set of all classes above it holds the true one as often as
  promised (split conformal prediction: Vovk et al. 2005; the score is that of Sadinle, Lei and Wasserman 2019),
- reference features, and a distance from them beyond which an image is none of the classes (Sun et al. 2022, "Out-of-
  Distribution Detection with Deep Nearest Neighbors").
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.9  # of the sets of classes, unless another is asked for
CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
WRONGLY_FLAGGED = 0.05  # share of images of the classes that are called none of them, unless another is asked for
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
REFERENCE_IMAGES = 1000  # whose features are stored at most: 2 MB of numbers
NEIGHBOUR = 10  # the distance is that to the 10th nearest; measured in docs/statistics.md
LARGEST_TEMPERATURE = 100.0  # and the inverse is the smallest one


@dataclass(frozen=True)
class Conformal:
    """Sets of classes. limits: for each of CONFIDENCES the largest -log(probability) that is still in the set, None for
    all classes, where there are too few images for that confidence.

    Probabilities here are those of the logits as they are: no temperature fitted on the same images touches the promise.
    exact: whether the n images had no part in training at all; False if they chose the epoch.
    """

    limits: Mapping[float, float | None]
    n: int
    exact: bool

    def sets(self, logits: np.ndarray, *, confidence: float = CONFIDENCE) -> np.ndarray:
        """(n, C) any float -> (n, C) bool. The most probable class is always in. Raises ValueError for a confidence
        that is not in `limits`."""
        if confidence not in self.limits:
            known = ", ".join(str(value) for value in self.limits)
            raise ValueError(f"confidence {confidence} is not stored in the model; one of {known} is")
        limit = self.limits[confidence]
        surprise = -log_softmax(logits)
        inside = np.full(surprise.shape, True) if limit is None else surprise <= limit
        inside[np.arange(len(inside)), surprise.argmin(axis=1)] = True
        return inside


@dataclass(frozen=True, eq=False)  # arrays have no equality
class OpenSet:
    """How far an image is from all that the model knows: the distance of its features, scaled to length 1, to the
    `neighbour`-th nearest of the reference, (m, d) float32, which are scaled already.

    limits: for each of SHARES the distance beyond which that share of the n validation images lies, None where n is too
    small; reference: images of which split, `held_out` if they are not the validation images themselves.
    """

    reference: np.ndarray
    neighbour: int
    limits: Mapping[float, float | None]
    n: int
    held_out: bool

    def distance(self, features: np.ndarray) -> np.ndarray:
        """(n, d) any float -> (n,) float64 in [0, 2]."""
        return _distances(self.reference, unit(features), self.neighbour)

    def is_none_of_these(self, features: np.ndarray, *, wrongly_flagged: float = WRONGLY_FLAGGED) -> np.ndarray:
        """(n, d) -> (n,) bool. wrongly_flagged: the share of images of the classes that may be flagged by mistake; raises
        ValueError if it is not in `limits`."""
        if wrongly_flagged not in self.limits:
            known = ", ".join(str(value) for value in self.limits)
            raise ValueError(f"share {wrongly_flagged} is not stored in the model; one of {known} is")
        limit = self.limits[wrongly_flagged]
        return self.distance(features) > (math.inf if limit is None else limit)


@dataclass(frozen=True)
class Calibration:
    """Everything of this module that a model file holds.

    temperature: that the logits are divided by; fitted_on: "out-of-fold logits" of n training images, or "validation
    logits" of n validation images.
    """

    temperature: float
    fitted_on: str
    n: int
    conformal: Conformal
    open_set: OpenSet | None

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(n, C) any float -> (n, C) float64: calibrated by the temperature; the order of the classes stays."""
        return np.asarray(np.exp(log_softmax(np.asarray(logits, dtype=np.float64) / self.temperature)))

    def prediction_sets(self, logits: np.ndarray, *, confidence: float = CONFIDENCE) -> np.ndarray:
        """(n, C) bool: see Conformal.sets."""
        return self.conformal.sets(logits, confidence=confidence)

    def distance(self, features: np.ndarray) -> np.ndarray | None:
        """(n,) float64: see OpenSet.distance; None if the file holds no reference features."""
        return None if self.open_set is None else self.open_set.distance(features)

    def is_none_of_these(self, features: np.ndarray, *, wrongly_flagged: float = WRONGLY_FLAGGED) -> np.ndarray | None:
        """(n,) bool: see OpenSet.is_none_of_these; None if the file holds no reference features."""
        if self.open_set is None:
            return None
        return self.open_set.is_none_of_these(features, wrongly_flagged=wrongly_flagged)

    def to_json(self) -> dict[str, Any]:
        """Arrays as base64 of little-endian float32."""
        open_set = None
        if self.open_set is not None:
            open_set = {
                "reference": _encode(self.open_set.reference),
                "neighbour": self.open_set.neighbour,
                "limits": _pairs(self.open_set.limits),
                "n": self.open_set.n,
                "held_out": self.open_set.held_out,
            }
        return {
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "n": self.n,
            "conformal": {
                "limits": _pairs(self.conformal.limits),
                "n": self.conformal.n,
                "exact": self.conformal.exact,
            },
            "open_set": open_set,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Calibration":
        """Raises KeyError, TypeError or ValueError if it is not what to_json wrote."""
        conformal, open_set = values["conformal"], values["open_set"]
        return Calibration(
            temperature=float(values["temperature"]),
            fitted_on=values["fitted_on"],
            n=int(values["n"]),
            conformal=Conformal(_mapping(conformal["limits"]), int(conformal["n"]), bool(conformal["exact"])),
            open_set=None
            if open_set is None
            else OpenSet(
                reference=_decode(open_set["reference"]),
                neighbour=int(open_set["neighbour"]),
                limits=_mapping(open_set["limits"]),
                n=int(open_set["n"]),
                held_out=bool(open_set["held_out"]),
            ),
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
    """Everything from the (n, C) logits, (n,) labels and (n, d) features of the validation images.

    chosen_on_val: whether those chose the epoch; out_of_fold: logits and labels of training images, by heads that did not
    see them, for the temperature; others: as in fit_open_set.
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
    """The T that makes softmax(logits / T) fit the labels best. logits: (n, C) any float; labels: (n,) int.

    A normal prior on log T with deviation 1 counts as much as about one image: without it a model that is right every
    time would be called infinitely sure. Newton's method for b = -log T, with bisection where it would leave the bracket.
    """
    wide = np.asarray(logits, dtype=np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    target = float(wide[np.arange(len(labels)), labels].sum())
    low, high, b = -math.log(LARGEST_TEMPERATURE), math.log(LARGEST_TEMPERATURE), 0.0
    for _ in range(100):
        inverse = math.exp(b)
        powers = np.exp(inverse * wide)
        powers /= powers.sum(axis=1, keepdims=True)
        mean = (powers * wide).sum(axis=1)
        by_inverse = float(mean.sum()) - target  # slope of the sum of the losses by 1 / T
        slope = inverse * by_inverse + b
        low, high = (low, b) if slope > 0 else (b, high)
        spread = float((powers * wide**2).sum() - (mean**2).sum())
        curvature = inverse * by_inverse + inverse**2 * spread + 1
        step = b - slope / curvature if curvature > 0 else math.inf
        before, b = b, step if low < step < high else (low + high) / 2
        if abs(b - before) < 1e-10:
            break
    return math.exp(-b)


def fit_conformal(logits: np.ndarray, labels: np.ndarray, *, exact: bool) -> Conformal:
    """Limits from images that the model was not trained on: the true class of a new image from the same source is in its
    set with at least the probability asked for. logits: (n, C) any float; labels: (n,) int."""
    surprise = -log_softmax(logits)[np.arange(len(labels)), labels]
    return Conformal({c: upper_limit(surprise, 1 - c) for c in CONFIDENCES}, len(labels), exact)


def fit_open_set(
    features: np.ndarray, labels: np.ndarray, *, others: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> OpenSet | None:
    """Limits from the (n, d) features of validation images of the (n,) int labels. others: features and labels of training
    images, where the backbone has not learned from those; otherwise the validation images are the reference, and the
    distance of each is measured without itself. None if there are too few images to have neighbours.
    """
    held_out = others is not None
    pool, pool_labels = (features, labels) if others is None else others
    kept = reference_rows(pool_labels, seed=seed)
    smallest = int(np.bincount(pool_labels[kept])[np.unique(pool_labels[kept])].min())
    neighbour = min(NEIGHBOUR, smallest - (0 if held_out else 1))
    if neighbour < 1:
        return None
    reference = unit(pool[kept]).astype(np.float32)
    itself = np.full(len(features), -1)
    if not held_out:
        itself[kept] = np.arange(len(kept))
    distances = _distances(reference, unit(features), neighbour, itself=itself)
    return OpenSet(reference, neighbour, {s: upper_limit(distances, s) for s in SHARES}, len(features), held_out)


def reference_rows(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """(m,) int: sorted places of at most REFERENCE_IMAGES images, the same share of each class, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, at random within
    return np.sort(order[:: -(-len(labels) // REFERENCE_IMAGES)])


def cross_fitted(logits: np.ndarray, labels: np.ndarray, *, parts: int = 10) -> np.ndarray:
    """(n, C) float64 probabilities, each tenth by the temperature of the other nine: what the temperature is worth on images
    that it was not fitted on."""
    probabilities = np.empty(logits.shape)
    part = np.arange(len(labels)) % min(parts, len(labels))
    for number in range(part.max() + 1):
        out = part == number
        temperature = fit_temperature(logits[~out], labels[~out])
        probabilities[out] = np.exp(log_softmax(logits[out].astype(np.float64) / temperature))
    return probabilities


def upper_limit(scores: np.ndarray, share: float) -> float | None:
    """The limit that a new score, exchangeable with these n, exceeds with a probability of at most `share`: the
    ceil((n + 1)(1 - share))-th smallest; None if n is too small for any to be that."""
    place = math.ceil((len(scores) + 1) * (1 - share) - 1e-9)
    return None if place > len(scores) else float(np.partition(scores, place - 1)[place - 1])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(n, C) any float -> (n, C) float64."""
    wide = np.asarray(logits, dtype=np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def unit(features: np.ndarray) -> np.ndarray:
    """(n, d) any float -> (n, d) float64 of length 1; a row of zeros stays."""
    wide = np.asarray(features, dtype=np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


def _distances(
    reference: np.ndarray, features: np.ndarray, neighbour: int, *, itself: np.ndarray | None = None
) -> np.ndarray:
    """(n,) float64: from each row of features (n, d) to the `neighbour`-th nearest of the reference (m, d), all of length 1.
    itself: (n,) int, the place of the row in the reference, which does not count; -1 if it is not there."""
    wide = reference.astype(np.float64)
    found = np.empty(len(features))
    for start in range(0, len(features), 4096):
        rows = slice(start, start + 4096)
        squares = 2 - 2 * (features[rows] @ wide.T)
        if itself is not None:
            own = np.flatnonzero(itself[rows] >= 0)
            squares[own, itself[rows][own]] = np.inf
        found[rows] = np.partition(squares, neighbour - 1, axis=1)[:, neighbour - 1]
    return np.sqrt(np.maximum(found, 0.0))


def _encode(array: np.ndarray) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "float32": base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode(),
    }


def _decode(value: Mapping[str, Any]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(value["float32"], validate=True), dtype="<f4")
    return flat.astype(np.float32).reshape(value["shape"])


def _pairs(limits: Mapping[float, float | None]) -> list[list[float | None]]:
    """JSON has no numbers as keys."""
    return [[share, limit] for share, limit in limits.items()]


def _mapping(pairs: Sequence[Sequence[float | None]]) -> dict[float, float | None]:
    return {float(share): None if limit is None else float(limit) for share, limit in pairs}  # type: ignore[arg-type]
