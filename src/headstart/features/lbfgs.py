"""L-BFGS for smooth convex functions, to a stated gradient norm. Imports numpy alone.

scipy's L-BFGS-B reaches the same gradient norm in the same time, but importing scipy.optimize takes 0.5 s, more than
the fit of a few hundred images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_MEMORY = 10  # number of stored pairs of steps and gradient changes
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""(k,) float64 -> the value and its gradient, (k,)."""


@dataclass(frozen=True)
class Minimum:
    """Where `minimize` ended. gradient_norm: the largest absolute entry of the gradient there."""

    x: np.ndarray
    value: float
    gradient_norm: float
    iterations: int
    converged: bool


def minimize(objective: Objective, start: np.ndarray, *, gradient_norm: float, max_iterations: int = 1000) -> Minimum:
    """Minimise from `start`, (k,) float64, until the largest entry of the gradient is at most `gradient_norm`
    (Nocedal 1980)."""
    x = start
    value, gradient = objective(x)
    pairs: list[tuple[np.ndarray, np.ndarray, float]] = []
    for iteration in range(max_iterations):
        norm = float(np.abs(gradient).max())
        if norm <= gradient_norm:
            return Minimum(x, value, norm, iteration, True)
        found = _line_search(objective, x, value, gradient, -_inverse_hessian_times(gradient, pairs))
        if found is None:
            if not pairs:
                return Minimum(x, value, norm, iteration, False)
            pairs = []  # once more along the gradient
            continue
        new_x, value, new_gradient = found
        step, change = new_x - x, new_gradient - gradient
        if (product := float(step @ change)) > 0:
            pairs = [*pairs[-_MEMORY + 1 :], (step, change, product)]
        x, gradient = new_x, new_gradient
    return Minimum(x, value, float(np.abs(gradient).max()), max_iterations, False)


def _inverse_hessian_times(gradient: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """The two-loop recursion over (step, change of the gradient, their product)."""
    q = gradient.copy()
    factors = []
    for step, change, product in reversed(pairs):
        factors.append(float(step @ q) / product)
        q -= factors[-1] * change
    if pairs:
        _, change, product = pairs[-1]
        q *= product / float(change @ change)
    for (step, change, product), factor in zip(pairs, reversed(factors), strict=True):
        q += (factor - float(change @ q) / product) * step
    return q


def _line_search(
    objective: Objective, x: np.ndarray, value: float, gradient: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray] | None:
    """A point along `direction` whose slope is at least 0.9 of the first one and at most 0.5 of it uphill, its value
    and gradient; None if there is none.

    It compares slopes and not differences of values, so it still works where those are smaller than rounding errors.
    """
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
