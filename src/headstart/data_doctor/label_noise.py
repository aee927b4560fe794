"""Suspected wrong labels, by confident learning (Northcutt, Jiang and Chuang 2021) on cross-validated probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstart.features.cross_validation import COARSE_GRID, cross_validate, out_of_fold_logits, stratified_folds
from headstart.features.logistic_regression import Features
from headstart.model.softmax import softmax


@dataclass(frozen=True)
class Suspect:
    """An image whose label is probably wrong. index: of its row; margin: p(suggested) - p(given), in (0, 1]."""

    index: int
    given: int
    suggested: int
    p_given: float
    p_suggested: float

    @property
    def margin(self) -> float:
        return self.p_suggested - self.p_given


@dataclass(frozen=True)
class LabelStudy:
    """suspects: largest margin first; joint: (C, C) estimated share of images with given label i and true label j;
    accuracy: share of the images whose out-of-fold prediction is their label."""

    suspects: list[Suspect]
    joint: np.ndarray
    accuracy: float


def study_labels(
    features: Features, labels: np.ndarray, owners: Sequence[str], *, num_classes: int, folds: int, seed: int
) -> LabelStudy:
    """features: (n, d); labels: (n,) int; owners: (n,), names of what must share a fold, such as a cluster of
    near-duplicates.

    Raises ValueError if a class has fewer than two owners: then none of them could be held out.
    """
    probabilities = out_of_fold(features, labels, owners, num_classes=num_classes, folds=folds, seed=seed)
    counts = confident_joint(probabilities, labels)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    return LabelStudy(suspects_of(probabilities, labels, counts), counts / len(labels), accuracy)


def out_of_fold(
    features: Features, labels: np.ndarray, owners: Sequence[str], *, num_classes: int, folds: int, seed: int
) -> np.ndarray:
    """(n, C) float64 probabilities: each row by a head that was trained on no row of the same owner.

    The strength of the penalty is chosen once, by the same folds.
    """
    first: dict[str, int] = {}
    for row, owner in enumerate(owners):
        first.setdefault(owner, row)
    # an owner has one stratum, whatever labels its images have: a copy with another label must not train its head
    strata = labels[[first[owner] for owner in owners]]
    smallest = int(np.bincount(strata[list(first.values())], minlength=num_classes).min())
    if smallest < 2:
        raise ValueError("a class has fewer than two different images")
    fold_of = stratified_folds(owners, strata, folds=min(folds, smallest), seed=seed)
    l2 = cross_validate(features, labels, fold_of, num_classes=num_classes, grid=COARSE_GRID).l2
    return softmax(out_of_fold_logits(features, labels, fold_of, num_classes=num_classes, l2=l2))


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, C) float64, rows summing to the count of each given label: the number of images of label i whose true label
    is j. probabilities: (n, C); labels: (n,) int.

    A row counts for the class j of largest probability among those whose threshold it reaches. The threshold of a class
    is the mean probability of that class over the images with that label (section 3.1 of the paper).
    """
    num_classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == label, label].mean() for label in range(num_classes)])
    above = probabilities >= thresholds
    confident = above.any(axis=1)
    likely = np.where(above, probabilities, -1.0).argmax(axis=1)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels[confident], likely[confident]), 1.0)
    rows = counts.sum(axis=1, keepdims=True)
    # the labels of a class without a confident member are taken as correct
    counts = np.where(rows > 0, counts / np.maximum(rows, 1.0), np.eye(num_classes))
    return counts * np.bincount(labels, minlength=num_classes)[:, None]


def suspects_of(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> list[Suspect]:
    """Prune by noise rate (section 3.2): for each given label i and other class j the images of largest margin p_j -
    p_i, as many as the confident joint estimates, and only positive margins. Each image once, largest margin first."""
    best: dict[int, Suspect] = {}
    for given in range(len(counts)):
        rows = np.flatnonzero(labels == given)
        for other in range(len(counts)):
            wanted = round(float(counts[given, other]))
            if other == given or not wanted:
                continue
            margins = probabilities[rows, other] - probabilities[rows, given]
            for row in rows[np.argsort(-margins, kind="stable")[:wanted]].tolist():
                one = Suspect(row, given, other, float(probabilities[row, given]), float(probabilities[row, other]))
                if one.margin > (best[row].margin if row in best else 0.0):
                    best[row] = one
    return sorted(best.values(), key=lambda suspect: (-suspect.margin, suspect.index))
