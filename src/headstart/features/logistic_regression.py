"""The head on frozen features as a convex problem: multinomial logistic regression in float64, solved to its optimum.

Objective, for n rows with weights w (mean 1), standardised features and softmax over C classes:

    mean over rows of  w * -log p(label)   +   l2 / (2 n) * |W|^2        (the intercept is free)

so `l2` is the weight of |W|^2 / 2 beside the *sum* of the losses, the 1/C of scikit-learn. The features stay where
they are, in memory or in a memory map of any length; a pass converts them to float64 piece by piece.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from headstart.errors import InputError
from headstart.runtime.hardware import usable_cores

_T = TypeVar("_T")

GRADIENT_NORM = 1e-8  # largest entry of the gradient, in the preconditioned coordinates, at which a fit ends
STREAMED_GRADIENT_NORM = 1e-6  # where the features do not fit into memory: with so many rows the noise is far above it
SELECTION_GRADIENT_NORM = 1e-4  # while only the validation losses of cross-validation are wanted
MAX_ITERATIONS = 1000
NEIGHBOUR_ROWS = 20_000  # that nearest neighbours are looked for among, at most
L2_GRID = tuple(float(10.0 ** (k / 2)) for k in range(10, -5, -1))  # 1e5 down to 1e-2

_IN_MEMORY_BYTES = 1 << 29  # up to this much as float64 is converted once and kept
_CHUNK_ROWS = 8192
_CURVATURE_ROWS = 20_000  # rows that the preconditioner looks at; it decides the speed and not the result
_NEIGHBOUR_PIECE = 256  # test rows at once, beside NEIGHBOUR_ROWS: 20 MB of similarities
_MEMORY = 10  # pairs of L-BFGS
_KEPT_ROWS = 2000  # of the images held out in cross-validation, whose logits are returned


class Features(Protocol):
    """(n, d) float32 or float64: an array, or a bank's rows. A slice, a mask or indices give an array."""

    @property
    def dtype(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, which: Any, /) -> Any: ...


@dataclass(frozen=True)
class Head:
    """weight: (C, d), bias: (C,), float64: logits = features @ weight.T + bias, for features as the trunk gives them."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: Features) -> np.ndarray:
        """(n, d) any float -> (n, C) float64."""
        pieces = _pieces(features.shape[0])
        return np.concatenate(
            [np.asarray(features[rows], dtype=np.float64) @ self.weight.T + self.bias for rows in pieces]
        )


@dataclass(frozen=True)
class Fit:
    """A head and how it was found. gradient_norm: the largest entry of the gradient where the solver ended."""

    head: Head
    l2: float
    objective: float
    gradient_norm: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class CrossValidation:
    """Mean validation log loss and accuracy over the folds for each strength, and the strength that was chosen.

    logits: (m, C) float32 of at most 2,000 images, each by the head of that strength that did not see it; labels: (m,) int."""

    l2: float
    grid: tuple[float, ...]
    losses: tuple[float, ...]
    loss_errors: tuple[float, ...]  # standard error over the folds
    accuracies: tuple[float, ...]
    folds: int
    logits: np.ndarray
    labels: np.ndarray


def fit(
    features: Features,
    labels: np.ndarray,
    *,
    num_classes: int,
    l2: float,
    weights: np.ndarray | None = None,
    gradient_norm: float | None = None,
) -> Fit:
    """The optimum for one strength. features: (n, d) float32 or float64; labels: (n,) int; weights: (n,) with mean 1.

    gradient_norm: None for GRADIENT_NORM in memory and STREAMED_GRADIENT_NORM beyond it.
    """
    problem = Problem(features, labels, num_classes=num_classes, weights=weights)
    start = problem.start_from_sample(l2) if problem.streams else None
    if gradient_norm is None:
        gradient_norm = STREAMED_GRADIENT_NORM if problem.streams else GRADIENT_NORM
    return problem.solve(l2, gradient_norm=gradient_norm, start=start)[0]


class Problem:
    """One data set with its standardisation and curvature, to be solved for one strength or several."""

    def __init__(
        self, features: Features, labels: np.ndarray, *, num_classes: int, weights: np.ndarray | None = None
    ) -> None:
        num_rows, self.width = features.shape
        self.num_rows, self.num_classes = num_rows, num_classes
        in_memory = num_rows * self.width * 8 <= _IN_MEMORY_BYTES
        wide = np.asarray(features[:], dtype=np.float64) if in_memory else None
        features = features if wide is None else wide
        self._features, self._labels = features, labels
        self._weights = np.ones(num_rows) if weights is None else weights
        self.mean, self.std = _moments(features, self._weights)
        # the directions and curvatures of the standardised features; half of them bounds the Hessian (Boehning 1992)
        step = -(-num_rows // _CURVATURE_ROWS)
        sample = features[::step].astype(np.float64)
        sample -= self.mean
        sample /= self.std
        sample *= np.sqrt(self._weights[::step])[:, None]
        if len(sample) < self.width:  # fewer rows than columns: outside their span the weights are 0
            basis, triangle = np.linalg.qr(sample.T)
            curvature, turned = np.linalg.eigh(triangle @ triangle.T / len(sample))
            self._directions = basis @ turned
        else:
            curvature, self._directions = np.linalg.eigh(sample.T @ sample / len(sample))
        self._curvature = np.maximum(curvature, 0.0)
        self._rotated: np.ndarray | None = None
        if wide is not None:
            self._rotated = ((wide - self.mean) / self.std) @ self._directions

    @property
    def streams(self) -> bool:
        """Whether the features stay where they are and every pass reads them."""
        return self._rotated is None

    def start_from_sample(self, l2: float) -> np.ndarray:
        """A start for `solve` near the optimum: the solution for an even sample of the rows."""
        step = -(-self.num_rows // _CURVATURE_ROWS)
        weights = _mean_one(self._weights[::step])
        sample = Problem(
            self._features[::step].astype(np.float64),
            self._labels[::step],
            num_classes=self.num_classes,
            weights=weights,
        )
        found, _ = sample.solve(l2 * len(weights) / self.num_rows, gradient_norm=SELECTION_GRADIENT_NORM)
        weight = found.head.weight.T
        return np.vstack([self._directions.T @ (weight * self.std[:, None]), found.head.bias + self.mean @ weight])

    def solve(
        self, l2: float, *, gradient_norm: float = GRADIENT_NORM, start: np.ndarray | None = None
    ) -> tuple[Fit, np.ndarray]:
        """The fit, and the solution in rotated coordinates (r + 1, C) to start the next strength from."""
        penalty = l2 / self.num_rows
        scale = 1.0 / np.sqrt(0.5 * self._curvature + max(penalty, 1e-12))[:, None]  # (r, 1)
        bias_scale = np.sqrt(2.0)
        classes = self.num_classes

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta = flat.reshape(-1, classes)
            loss, gradient, bias_gradient = self._loss(scale * theta[:-1], bias_scale * theta[-1])
            weights = scale * theta[:-1]
            loss += 0.5 * penalty * float((weights**2).sum())
            gradient = scale * (gradient + penalty * weights)
            return loss, np.vstack([gradient, bias_scale * bias_gradient]).ravel()

        first = np.zeros((self._directions.shape[1] + 1, classes))
        if start is not None:
            first[:-1], first[-1] = start[:-1] / scale, start[-1] / bias_scale
        minimum = minimize(objective, first.ravel(), gradient_norm=gradient_norm)
        theta = minimum.x.reshape(-1, classes)
        rotated, intercept = scale * theta[:-1], bias_scale * theta[-1]
        weight = (self._directions @ rotated) / self.std[:, None]  # (d, C)
        head = Head(weight.T.copy(), intercept - self.mean @ weight)
        found = Fit(head, l2, minimum.value, minimum.gradient_norm, minimum.iterations, minimum.converged)
        return found, np.vstack([rotated, intercept])

    def _loss(self, rotated: np.ndarray, intercept: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Weighted mean loss and its gradients for weights (r, C) in rotated coordinates and intercept (C,)."""
        if self._rotated is not None:
            loss, gradient, bias_gradient = self._sums(self._rotated, rotated, intercept)
            return loss / self.num_rows, gradient / self.num_rows, bias_gradient / self.num_rows
        weight = (self._directions @ rotated) / self.std[:, None]  # (d, C)
        loss, gradient, bias_gradient = self._sums(self._features, weight, intercept - self.mean @ weight)
        standardised = (gradient - np.outer(self.mean, bias_gradient)) / self.std[:, None]
        return loss / self.num_rows, self._directions.T @ standardised / self.num_rows, bias_gradient / self.num_rows

    def _sums(self, features: Features, weight: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Sum of the losses and of its gradients by weight (k, C) and bias (C,)."""

        def of(rows: slice) -> tuple[float, np.ndarray, np.ndarray]:
            chunk = np.asarray(features[rows], dtype=np.float64)
            loss, residual = _cross_entropy(chunk @ weight + bias, self._labels[rows], self._weights[rows])
            return loss, chunk.T @ residual, residual.sum(axis=0)

        total, gradient, bias_gradient = 0.0, np.zeros_like(weight), np.zeros_like(bias)
        for loss, part, bias_part in _map(of, _pieces(features.shape[0])):
            total += loss
            gradient += part
            bias_gradient += bias_part
        return total, gradient, bias_gradient


def cross_validate(
    features: Features,
    labels: np.ndarray,
    folds: np.ndarray,
    *,
    num_classes: int,
    weights: np.ndarray | None = None,
    counted: np.ndarray | None = None,
    one_standard_error: bool = False,
    rows_per_image: int = 1,
    grid: Sequence[float] = L2_GRID,
) -> CrossValidation:
    """The strength with the smallest validation loss; with one_standard_error the strongest one not worse than
    that by more than the standard error of the mean over the folds (Breiman et al. 1984).

    folds: (n,) int, who is held out when; counted: (n,) bool, rows that validate (not augmented ones; all by default);
    rows_per_image: the strengths of the grid are multiplied by it, so that they mean the same for any number of views.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    counted = np.ones(len(labels), dtype=bool) if counted is None else counted
    num_folds = int(folds.max()) + 1
    grid = tuple(sorted(grid, reverse=True))
    losses, hits, sizes = np.zeros((num_folds, len(grid))), np.zeros(len(grid)), np.zeros(num_folds)
    kept = np.flatnonzero(counted)
    kept = kept[:: -(-len(kept) // _KEPT_ROWS)]
    out_of_fold = np.empty((len(grid), len(kept), num_classes), dtype=np.float32)
    for fold in range(num_folds):
        train, held_out = folds != fold, (folds == fold) & counted
        problem = Problem(features[train], labels[train], num_classes=num_classes, weights=_mean_one(weights[train]))
        sizes[fold] = held_out.sum()
        held_features, held_labels, held_weights = features[held_out], labels[held_out], weights[held_out]
        here = held_out[kept]
        places = np.searchsorted(np.flatnonzero(held_out), kept[here])
        start: np.ndarray | None = None
        for position, l2 in enumerate(grid):  # from strong to weak, each from the solution before
            found, start = problem.solve(l2 * rows_per_image, gradient_norm=SELECTION_GRADIENT_NORM, start=start)
            logits = found.head.logits(held_features)
            out_of_fold[position, here] = logits[places]
            hits[position] += (logits.argmax(axis=1) == held_labels).sum()
            loss, _ = _cross_entropy(logits, held_labels, held_weights)
            losses[fold, position] = loss / held_weights.sum()
    means = losses.mean(axis=0)
    errors = losses.std(axis=0, ddof=1) / np.sqrt(num_folds)
    best = int(means.argmin())
    if one_standard_error:
        best = int(np.flatnonzero(means <= means[best] + errors[best])[0])  # the grid begins with the strongest
    return CrossValidation(
        grid[best],
        grid,
        tuple(means.tolist()),
        tuple(errors.tolist()),
        tuple((hits / sizes.sum()).tolist()),
        num_folds,
        out_of_fold[best],
        labels[kept],
    )


def stratified_folds(ids: Sequence[str], labels: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """(n,) int in [0, folds): within a class by a hash of (seed, id), so the order of the rows does not matter.

    Rows with the same id (views of one image) share a fold.
    """
    fold_of = np.zeros(len(ids), dtype=np.int64)
    dealt = 0
    for label in np.unique(labels):
        rows = [int(row) for row in np.flatnonzero(labels == label)]
        members = sorted({ids[row] for row in rows}, key=lambda name: _rank(seed, name))
        place = {name: (dealt + position) % folds for position, name in enumerate(members)}
        dealt += len(members)
        for row in rows:
            fold_of[row] = place[ids[row]]
    return fold_of


def knn_accuracy(
    features: Features, labels: np.ndarray, test_features: Features, test_labels: np.ndarray, *, k: int = 5
) -> float:
    """Share of the test rows whose k most similar rows (cosine; the similarities are their votes) name the right class.

    Neighbours are looked for among `neighbours(len(labels))`; both sides are read piece by piece.
    """
    sample = neighbours(len(labels))
    known, labels = _unit(features[sample]), labels[sample]
    k = min(k, len(labels))
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    correct = 0
    for start in range(0, len(test_labels), _NEIGHBOUR_PIECE):
        rows = slice(start, start + _NEIGHBOUR_PIECE)
        similarity = _unit(test_features[rows]) @ known.T
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        votes = np.zeros((len(nearest), num_classes))
        np.add.at(
            votes, (np.arange(len(nearest))[:, None], labels[nearest]), np.take_along_axis(similarity, nearest, axis=1)
        )
        correct += int((votes.argmax(axis=1) == test_labels[rows]).sum())
    return correct / len(test_labels)


def neighbours(num_rows: int) -> slice:
    """The rows that `knn_accuracy` looks for neighbours among: all, or an even sample of NEIGHBOUR_ROWS at most."""
    return slice(0, num_rows, max(1, -(-num_rows // NEIGHBOUR_ROWS)))


@dataclass(frozen=True)
class Minimum:
    """Where `minimize` ended."""

    x: np.ndarray
    value: float
    gradient_norm: float
    iterations: int
    converged: bool


def minimize(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    *,
    gradient_norm: float,
    max_iterations: int = MAX_ITERATIONS,
) -> Minimum:
    """L-BFGS (Nocedal 1980) for a smooth convex function: (x,) -> (value, gradient).

    The line search looks at slopes, not at differences of values, so it goes on where those drown in rounding.
    """
    x = start
    value, gradient = objective(x)
    pairs: list[tuple[np.ndarray, np.ndarray, float]] = []
    for iteration in range(max_iterations):
        norm = float(np.abs(gradient).max())
        if norm <= gradient_norm:
            return Minimum(x, value, norm, iteration, True)
        direction = -_two_loops(gradient, pairs)
        step = _line_search(objective, x, value, gradient, direction)
        if step is None:
            if not pairs:
                return Minimum(x, value, norm, iteration, False)
            pairs.clear()  # once more from the steepest descent
            continue
        new_x, new_value, new_gradient = step
        moved, turned = new_x - x, new_gradient - gradient
        if (product := float(moved @ turned)) > 0:
            pairs = [*pairs[-_MEMORY + 1 :], (moved, turned, product)]
        x, value, gradient = new_x, new_value, new_gradient
    return Minimum(x, value, float(np.abs(gradient).max()), max_iterations, False)


def _two_loops(gradient: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """The inverse Hessian of the stored pairs times the gradient."""
    q = gradient.copy()
    factors = []
    for moved, turned, product in reversed(pairs):
        factor = float(moved @ q) / product
        q -= factor * turned
        factors.append(factor)
    if pairs:
        _, turned, product = pairs[-1]
        q *= product / float(turned @ turned)
    for (moved, turned, product), factor in zip(pairs, reversed(factors), strict=True):
        q += (factor - float(turned @ q) / product) * moved
    return q


def _line_search(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    x: np.ndarray,
    value: float,
    gradient: np.ndarray,
    direction: np.ndarray,
) -> tuple[np.ndarray, float, np.ndarray] | None:
    """A point along `direction` where the slope is at most 0.9 of the first one downhill, 0.5 of it uphill."""
    slope = float(gradient @ direction)
    if slope >= 0:
        return None
    low, high, length = 0.0, np.inf, 1.0
    allowed = value + 1e-12 * abs(value)
    for _ in range(40):
        new_x = x + length * direction
        new_value, new_gradient = objective(new_x)
        new_slope = float(new_gradient @ direction)
        if not np.isfinite(new_value) or new_slope > -0.5 * slope or new_value > allowed:
            high = length
        elif new_slope < 0.9 * slope:
            low = length
        else:
            return new_x, new_value, new_gradient
        length = 2 * length if high == np.inf else 0.5 * (low + high)
    return None


def _cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of the weighted losses, and the gradient by the logits, (n, C); `logits` is overwritten."""
    rows = np.arange(len(labels))
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[rows, labels]
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1)
    loss = float((weights * (np.log(sums) - chosen)).sum())
    logits /= sums[:, None]
    logits[rows, labels] -= 1.0
    logits *= weights[:, None]
    return loss, logits


def _moments(features: Features, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation per column, (d,) float64; a constant column has deviation 1.

    Raises InputError for inf and nan."""
    pieces = _pieces(features.shape[0])
    sums = _map(lambda rows: weights[rows] @ np.asarray(features[rows], dtype=np.float64), pieces)
    mean = np.sum(list(sums), axis=0) / weights.sum()
    if not np.isfinite(mean).all():
        odd = sum(_map(lambda rows: int((~np.isfinite(features[rows]).all(axis=1)).sum()), pieces))
        raise InputError(
            f"{odd} of {features.shape[0]} rows of features hold inf or nan; use other weights of the backbone"
        )
    squares = _map(lambda rows: weights[rows] @ (np.asarray(features[rows], dtype=np.float64) - mean) ** 2, pieces)
    std = np.sqrt(np.sum(list(squares), axis=0) / weights.sum())
    return mean, np.where(std > 1e-12 * np.maximum(1.0, np.abs(mean)), std, 1.0)


def _pieces(num_rows: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK_ROWS, num_rows)) for start in range(0, num_rows, _CHUNK_ROWS)]


def _map(work: Callable[[slice], _T], pieces: Sequence[slice]) -> Iterator[_T]:
    """Results in order, so that sums come out the same for any number of threads; numpy lets go of the lock."""
    if len(pieces) == 1:
        yield work(pieces[0])
        return
    yield from _pool().map(work, pieces)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The same threads for every pass: the allocator keeps memory for each thread that ever was."""
    return ThreadPoolExecutor(usable_cores())


def _mean_one(weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights * (len(weights) / weights.sum()))


def _unit(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float32)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


def _rank(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
