"""The head on frozen features: multinomial logistic regression in float64, trained to convergence. numpy alone.

Objective, for n rows with weights w (mean 1), standardised features and softmax over C classes:

    mean over rows of  w * -log p(label)   +   l2 / (2 n) * |W|^2        (the intercept is free)

so `l2` is the weight of |W|^2 / 2 beside the *sum* of the losses: 1/C of scikit-learn. The features stay where they
are, in memory or in a memory map of any length; a pass over them converts one chunk after another to float64.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from headstart.errors import InputError
from headstart.features.lbfgs import minimize
from headstart.runtime.hardware import usable_cores

_T = TypeVar("_T")

# Largest entry of the gradient, in the preconditioned coordinates, at which a fit ends:
GRADIENT_NORM = 1e-8
STREAMED_GRADIENT_NORM = 1e-6  # for features that do not fit into memory
SELECTION_GRADIENT_NORM = 1e-4  # for heads that are compared and not kept

_IN_MEMORY_BYTES = 1 << 29  # features of up to this size as float64 are converted once and kept
_CHUNK_ROWS = 8192
_CURVATURE_ROWS = 20_000  # rows from which the preconditioner is computed; they affect the speed and not the result


class Features(Protocol):
    """(n, d) float32 or float64: an array, or a bank's rows. A slice, a mask or indices give an array."""

    @property
    def dtype(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, which: Any, /) -> Any: ...


@dataclass(frozen=True)
class Head:
    """weight: (C, d), bias: (C,), float64: logits = features @ weight.T + bias, for features that are not
    standardised."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: Features) -> np.ndarray:
        """(n, d) any float -> (n, C) float64."""
        chunks = (np.asarray(features[rows], dtype=np.float64) for rows in _chunks(features.shape[0]))
        return np.concatenate([chunk @ self.weight.T + self.bias for chunk in chunks])


@dataclass(frozen=True)
class Fit:
    """A head and how it was found. gradient_norm: the largest entry of the gradient where the solver ended."""

    head: Head
    l2: float
    objective: float
    gradient_norm: float
    iterations: int
    converged: bool


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

    gradient_norm: by default GRADIENT_NORM, or STREAMED_GRADIENT_NORM for features that do not fit into memory. Raises
    InputError for inf and nan.
    """
    problem = Problem(features, labels, num_classes=num_classes, weights=weights)
    start = problem.start_from_sample(l2) if problem.streams else None
    if gradient_norm is None:
        gradient_norm = STREAMED_GRADIENT_NORM if problem.streams else GRADIENT_NORM
    return problem.solve(l2, gradient_norm=gradient_norm, start=start)[0]


class Problem:
    """One data set with its standardisation and curvature, to be solved for one or several strengths.

    The solver works in rotated coordinates: the r directions of the standardised features in which their curvature is
    diagonal."""

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
        # directions and curvatures of the standardised features; half the curvature bounds the Hessian (Boehning 1992)
        step = -(-num_rows // _CURVATURE_ROWS)
        sample = features[::step].astype(np.float64)
        sample -= self.mean
        sample /= self.std
        sample *= np.sqrt(self._weights[::step])[:, None]
        if len(sample) < self.width:  # fewer rows than columns: the weights are 0 outside the span of the rows
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
        """Whether every pass reads the features again, because they do not fit into memory as float64."""
        return self._rotated is None

    def start_from_sample(self, l2: float) -> np.ndarray:
        """(r + 1, C): a start for `solve` near the optimum, from the solution for evenly spaced rows."""
        step = -(-self.num_rows // _CURVATURE_ROWS)
        weights = mean_one(self._weights[::step])
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
        """The fit, and the solution in rotated coordinates, (r + 1, C), as the start for the next strength."""
        penalty = l2 / self.num_rows
        scale = 1.0 / np.sqrt(0.5 * self._curvature + max(penalty, 1e-12))[:, None]  # (r, 1)
        bias_scale = np.sqrt(2.0)
        classes = self.num_classes

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta = flat.reshape(-1, classes)
            weights = scale * theta[:-1]
            loss, gradient, bias_gradient = self._loss(weights, bias_scale * theta[-1])
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
        """Weighted mean loss and its gradients, for weights (r, C) in rotated coordinates and an intercept (C,)."""
        if self._rotated is not None:
            loss, gradient, bias_gradient = self._sums(self._rotated, rotated, intercept)
        else:
            weight = (self._directions @ rotated) / self.std[:, None]  # (d, C)
            loss, gradient, bias_gradient = self._sums(self._features, weight, intercept - self.mean @ weight)
            gradient = self._directions.T @ ((gradient - np.outer(self.mean, bias_gradient)) / self.std[:, None])
        return loss / self.num_rows, gradient / self.num_rows, bias_gradient / self.num_rows

    def _sums(self, features: Features, weight: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Summed loss and its gradients, for weight (k, C) and bias (C,) on features (n, k)."""

        def of(rows: slice) -> tuple[float, np.ndarray, np.ndarray]:
            chunk = np.asarray(features[rows], dtype=np.float64)
            loss, residual = cross_entropy(chunk @ weight + bias, self._labels[rows], self._weights[rows])
            return loss, chunk.T @ residual, residual.sum(axis=0)

        total, gradient, bias_gradient = 0.0, np.zeros_like(weight), np.zeros_like(bias)
        for loss, part, bias_part in _in_threads(of, _chunks(features.shape[0])):
            total += loss
            gradient += part
            bias_gradient += bias_part
        return total, gradient, bias_gradient


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of the weighted losses, and the gradient by the logits, (n, C). For speed it works in place and overwrites
    `logits`. logits: (n, C) float64; labels: (n,) int; weights: (n,)."""
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


def mean_one(weights: np.ndarray) -> np.ndarray:
    """(n,) weights scaled to mean 1."""
    return np.asarray(weights * (len(weights) / weights.sum()))


def _moments(features: Features, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation per column, (d,) float64; a constant column has deviation 1.

    Raises InputError for inf and nan."""
    chunks = _chunks(features.shape[0])
    sums = _in_threads(lambda rows: weights[rows] @ np.asarray(features[rows], dtype=np.float64), chunks)
    mean = np.sum(list(sums), axis=0) / weights.sum()
    if not np.isfinite(mean).all():
        odd = sum(_in_threads(lambda rows: int((~np.isfinite(features[rows]).all(axis=1)).sum()), chunks))
        raise InputError(
            f"{odd} of {features.shape[0]} rows of features hold inf or nan; use other weights of the backbone"
        )
    squares = _in_threads(
        lambda rows: weights[rows] @ (np.asarray(features[rows], dtype=np.float64) - mean) ** 2, chunks
    )
    std = np.sqrt(np.sum(list(squares), axis=0) / weights.sum())
    return mean, np.where(std > 1e-12 * np.maximum(1.0, np.abs(mean)), std, 1.0)


def _chunks(num_rows: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK_ROWS, num_rows)) for start in range(0, num_rows, _CHUNK_ROWS)]


def _in_threads(work: Callable[[slice], _T], chunks: Sequence[slice]) -> Iterator[_T]:
    """Results in order, so that sums have the same bits for any number of threads. numpy releases the interpreter
    lock."""
    if len(chunks) == 1:
        yield work(chunks[0])
        return
    yield from _pool().map(work, chunks)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The same threads for every pass: the allocator keeps memory for every thread that was ever started."""
    return ThreadPoolExecutor(usable_cores())
