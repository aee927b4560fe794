"""Detect images that belong to none of the classes by their distance from known features. Imports numpy alone.

Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors".
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.model.conformal import Limits, limits_from_json, limits_to_json, stored_limit, upper_limit

WRONGLY_FLAGGED = 0.05  # default share of images of the classes that are flagged as none of them
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
REFERENCE_IMAGES = 1000  # number of images whose features are stored, at most: 2 MB
NEIGHBOUR = 10  # the score is the distance to the 10th nearest image; compared in docs/explanation/statistics.md


@dataclass(frozen=True, eq=False)  # arrays have no equality
class OpenSet:
    """The distance of an image from what the model knows: from its features, scaled to length 1, to the `neighbour`-th
    nearest row of the reference, (m, d) float32, which are already scaled.

    limits: for each of SHARES the distance that this share of the n validation images exceeds, None if n is too small.
    held_out: whether the reference images are training images and not the n validation images themselves.
    """

    reference: np.ndarray
    neighbour: int
    limits: Limits
    n: int
    held_out: bool

    def distance(self, features: np.ndarray) -> np.ndarray:
        """(n, d) any float -> (n,) float64 in [0, 2]."""
        return _distances(self.reference, _unit(features), self.neighbour)

    def is_none_of_these(self, features: np.ndarray, *, wrongly_flagged: float = WRONGLY_FLAGGED) -> np.ndarray | None:
        """(n, d) -> (n,) bool; None if there were too few images for a limit. wrongly_flagged: the share of images of
        the classes that are flagged by mistake. Raises ValueError if it is not in `limits`."""
        limit = stored_limit(self.limits, wrongly_flagged, name="share")
        return None if limit is None else self.distance(features) > limit

    def to_json(self) -> dict[str, Any]:
        """The reference as base64 of little-endian float32."""
        content = np.ascontiguousarray(self.reference, dtype="<f4").tobytes()
        return {
            "reference": {"shape": list(self.reference.shape), "float32": base64.b64encode(content).decode()},
            "neighbour": self.neighbour,
            "limits": limits_to_json(self.limits),
            "n": self.n,
            "held_out": self.held_out,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "OpenSet":
        stored = values["reference"]
        flat = np.frombuffer(base64.b64decode(stored["float32"], validate=True), dtype="<f4").astype(np.float32)
        return OpenSet(
            reference=flat.reshape(stored["shape"]),
            neighbour=int(values["neighbour"]),
            limits=limits_from_json(values["limits"]),
            n=int(values["n"]),
            held_out=bool(values["held_out"]),
        )


def fit_open_set(
    features: np.ndarray, labels: np.ndarray, *, others: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> OpenSet | None:
    """Limits from the (n, d) features and (n,) int labels of validation images. None if a class has too few images.

    others: features and labels of training images to use as the reference, if the backbone was not trained on them.
    Otherwise the validation images are the reference, and the distance of each image excludes the image itself.
    """
    held_out = others is not None
    pool, pool_labels = (features, labels) if others is None else others
    kept = reference_rows(pool_labels, seed=seed)
    smallest = int(np.unique(pool_labels[kept], return_counts=True)[1].min())
    neighbour = min(NEIGHBOUR, smallest - (0 if held_out else 1))
    if neighbour < 1:
        return None
    reference = _unit(pool[kept]).astype(np.float32)
    itself = np.full(len(features), -1)
    if not held_out:
        itself[kept] = np.arange(len(kept))
    distances = _distances(reference, _unit(features), neighbour, itself=itself)
    return OpenSet(reference, neighbour, {s: upper_limit(distances, s) for s in SHARES}, len(features), held_out)


def reference_rows(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """(m,) int: sorted indices of at most REFERENCE_IMAGES images, the same share of each class, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, in random order within a class
    return np.sort(order[:: -(-len(labels) // REFERENCE_IMAGES)])


def _unit(features: np.ndarray) -> np.ndarray:
    """(n, d) any float -> (n, d) float64 of length 1; a row of zeros stays."""
    wide = np.asarray(features, dtype=np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


def _distances(
    reference: np.ndarray, features: np.ndarray, neighbour: int, *, itself: np.ndarray | None = None
) -> np.ndarray:
    """(n,) float64: from each row of features (n, d) to the `neighbour`-th nearest row of the reference (m, d), all of
    length 1. itself: (n,) int, the index of the row in the reference, which is excluded; -1 if it is not there."""
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
