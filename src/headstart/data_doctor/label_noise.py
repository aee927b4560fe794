"""Suspected wrong labels, by confident learning (Northcutt, Jiang and Chuang 2021) on the probe's out-of-fold probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstart.features import logistic_regression


@dataclass(frozen=True)
class Suspect:
    """An image whose label is doubted. index: of its row; margin: p(suggested) - p(given), in (0, 1]."""

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
    """suspects: the most doubtful first; joint: (C, C) estimated share of images with given label i and true label j;
    accuracy: share of the images whose out-of-fold prediction is their label."""

    suspects: list[Suspect]
    joint: np.ndarray
    accuracy: float


def study_labels(
    features: logistic_regression.Features,
    labels: np.ndarray,
    owners: Sequence[str],
    *,
    num_classes: int,
    folds: int,
    seed: int,
) -> LabelStudy:
    """features: (n, d); labels: (n,) int; owners: (n,) what must share a fold, such as the cluster of near-duplicates.

    Raises ValueError if a class has fewer than two owners: nothing could be held out of it.
    """
    probabilities = out_of_fold(features, labels, owners, num_classes=num_classes, folds=folds, seed=seed)
    counts = confident_joint(probabilities, labels)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    return LabelStudy(suspects_of(probabilities, labels, counts), counts / len(labels), accuracy)


def out_of_fold(
    features: logistic_regression.Features,
    labels: np.ndarray,
    owners: Sequence[str],
    *,
    num_classes: int,
    folds: int,
    seed: int,
) -> np.ndarray:
    """(n, C) float64: each row by a probe that saw neither it nor anything of the same owner.

    The strength of the probe is chosen once, by the same folds.
    """
    first: dict[str, int] = {}
    for row, owner in enumerate(owners):
        first.setdefault(owner, row)
    # an owner has one stratum, whatever labels its images have: a copy under another label must not testify
    strata = labels[[first[owner] for owner in owners]]
    smallest = min(
        len({owners[row] for row in np.flatnonzero(strata == label).tolist()}) for label in range(num_classes)
    )
    if smallest < 2:
        raise ValueError("a class has fewer than two different images")
    folds = min(folds, smallest)
    fold_of = logistic_regression.stratified_folds(owners, strata, folds=folds, seed=seed)
    chosen = logistic_regression.cross_validate(
        features, labels, fold_of, num_classes=num_classes, grid=logistic_regression.L2_GRID[::2]
    )
    probabilities = np.empty((len(labels), num_classes))
    for fold in range(folds):
        held = fold_of == fold
        found = logistic_regression.fit(
            features[~held],
            labels[~held],
            num_classes=num_classes,
            l2=chosen.l2,
            gradient_norm=logistic_regression.SELECTION_GRADIENT_NORM,
        )
        logits = found.head.logits(features[held])
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities[held] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, C) float64, rows summing to the count of each given label: how many of label i are truly j.

    A row counts for the class j of largest probability among those whose threshold it reaches; the threshold of
    a class is the mean probability of that class over the images that carry it (section 3.1 of the paper).
    """
    num_classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == label, label].mean() for label in range(num_classes)])
    above = probabilities >= thresholds
    sure = above.any(axis=1)
    likely = np.where(above, probabilities, -1.0).argmax(axis=1)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels[sure], likely[sure]), 1.0)
    rows = counts.sum(axis=1, keepdims=True)
    # a class with no confident member is taken at its word
    counts = np.where(rows > 0, counts / np.maximum(rows, 1.0), np.eye(num_classes))
    return counts * np.bincount(labels, minlength=num_classes)[:, None]


def suspects_of(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> list[Suspect]:
    """Prune by noise rate (section 3.2): of each given label i and other class j as many images as the confident
    joint says, those of largest margin p_j - p_i; only positive margins. Ranked by margin, each image once."""
    best: dict[int, Suspect] = {}
    for given in range(len(counts)):
        rows = np.flatnonzero(labels == given)
        for other in range(len(counts)):
            wanted = round(float(counts[given, other]))
            if other == given or not wanted:
                continue
            margins = probabilities[rows, other] - probabilities[rows, given]
            for position in np.argsort(-margins, kind="stable")[:wanted]:
                if margins[position] <= 0:
                    break
                row = int(rows[position])
                one = Suspect(row, given, other, float(probabilities[row, given]), float(probabilities[row, other]))
                if row not in best or one.margin > best[row].margin:
                    best[row] = one
    return sorted(best.values(), key=lambda suspect: (-suspect.margin, suspect.index))
