"""Choose the strength of the L2 penalty, and predict each image by a head that was not trained on it. numpy alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstart.features.logistic_regression import (
    SELECTION_GRADIENT_NORM,
    Features,
    Problem,
    cross_entropy,
    fit,
    mean_one,
)

L2_GRID = tuple(float(10.0 ** (k / 2)) for k in range(10, -5, -1))  # 1e5 down to 1e-2
COARSE_GRID = L2_GRID[::2]
NEVER_HELD_OUT = -1
"""Fold of rows that train the heads of all folds."""
_KEPT_ROWS = 2000  # number of images whose held-out logits are returned, at most


@dataclass(frozen=True)
class CrossValidation:
    """Mean validation log loss and accuracy over the folds for each strength, and the strength that was chosen.

    logits: (m, C) float32 of at most 2,000 images, from heads of the chosen strength that were not trained on them;
    labels: (m,) int."""

    l2: float
    grid: tuple[float, ...]
    losses: tuple[float, ...]
    loss_errors: tuple[float, ...]  # standard error over the folds
    accuracies: tuple[float, ...]
    folds: int
    logits: np.ndarray
    labels: np.ndarray


def cross_validate(
    features: Features,
    labels: np.ndarray,
    folds: np.ndarray,
    *,
    num_classes: int,
    weights: np.ndarray | None = None,
    counted: np.ndarray | None = None,
    rows_per_image: int = 1,
    grid: Sequence[float] = L2_GRID,
) -> CrossValidation:
    """Choose the strength with the smallest validation loss.

    features: (n, d); labels: (n,) int; folds: (n,) int, the fold that holds each row out, or NEVER_HELD_OUT; weights:
    (n,); counted: (n,) bool, the rows that validate (all by default; not the augmented copies, nor rows that are never
    held out); rows_per_image: the strengths are multiplied by it, so that they mean the same for any number of
    augmented copies."""
    weights = np.ones(len(labels)) if weights is None else weights
    counted = np.ones(len(labels), dtype=bool) if counted is None else counted
    num_folds = int(folds.max()) + 1
    grid = tuple(sorted(grid, reverse=True))
    losses, correct = np.zeros((num_folds, len(grid))), np.zeros(len(grid))
    kept = np.flatnonzero(counted)
    kept = kept[:: -(-len(kept) // _KEPT_ROWS)]
    out_of_fold = np.empty((len(grid), len(kept), num_classes), dtype=np.float32)
    for fold in range(num_folds):
        train, held_out = folds != fold, (folds == fold) & counted
        problem = Problem(features[train], labels[train], num_classes=num_classes, weights=mean_one(weights[train]))
        held_features, held_labels, held_weights = features[held_out], labels[held_out], weights[held_out]
        here = held_out[kept]
        rows = np.searchsorted(np.flatnonzero(held_out), kept[here])
        start: np.ndarray | None = None
        for column, l2 in enumerate(grid):  # from strong to weak, each from the solution before
            found, start = problem.solve(l2 * rows_per_image, gradient_norm=SELECTION_GRADIENT_NORM, start=start)
            logits = found.head.logits(held_features)
            out_of_fold[column, here] = logits[rows]
            correct[column] += (logits.argmax(axis=1) == held_labels).sum()
            losses[fold, column] = cross_entropy(logits, held_labels, held_weights)[0] / held_weights.sum()
    means = losses.mean(axis=0)
    errors = losses.std(axis=0, ddof=1) / np.sqrt(num_folds)
    best = int(means.argmin())
    return CrossValidation(
        l2=grid[best],
        grid=grid,
        losses=tuple(means.tolist()),
        loss_errors=tuple(errors.tolist()),
        accuracies=tuple((correct / counted.sum()).tolist()),
        folds=num_folds,
        logits=out_of_fold[best],
        labels=labels[kept],
    )


def out_of_fold_logits(
    features: Features, labels: np.ndarray, folds: np.ndarray, *, num_classes: int, l2: float
) -> np.ndarray:
    """(n, C) float64: the logits of each row by the head that was trained on the other folds. folds: (n,) int."""
    logits = np.empty((len(labels), num_classes))
    for fold in range(int(folds.max()) + 1):
        held_out = folds == fold
        found = fit(
            features[~held_out],
            labels[~held_out],
            num_classes=num_classes,
            l2=l2,
            gradient_norm=SELECTION_GRADIENT_NORM,
        )
        logits[held_out] = found.head.logits(features[held_out])
    return logits


def stratified_folds(ids: Sequence[str], labels: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """(n,) int in [0, folds): assigned within a class by a hash of (seed, id), independent of the order of the rows.

    Rows with the same id (augmented copies of one image) share a fold.
    """
    fold_of = np.zeros(len(ids), dtype=np.int64)
    num_dealt = 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label).tolist()
        members = sorted({ids[row] for row in rows}, key=lambda name: _hash(f"{seed}/{name}"))
        fold_by_id = {name: (num_dealt + index) % folds for index, name in enumerate(members)}
        num_dealt += len(members)
        for row in rows:
            fold_of[row] = fold_by_id[ids[row]]
    return fold_of


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
