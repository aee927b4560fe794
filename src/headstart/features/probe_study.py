"""What a frozen backbone can do on a folder, from repeated fits on its features. No model is kept."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from headstart.evaluation.statistics import wilson
from headstart.features import logistic_regression

LEARNING_CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Study:
    """What was found. accuracies: (repeats,), of k-fold cross-validation over all images, each repeat with other folds.

    folds: of each cross-validation; no more than the smallest class has images.
    ci95: of the mean over repeats, by the corrected t of Nadeau and Bengio (2003): the folds share images. It reaches as far at
    least as Wilson's interval of one measurement of all images: folds that agree by chance leave that much open.
    curve: per class so many training images -> mean accuracy on the others, its standard deviation over repeats.
    """

    classes: tuple[str, ...]
    n: int
    folds: int
    l2: float
    accuracies: list[float]
    mean: float
    ci95: tuple[float, float]
    knn_accuracy: float
    per_class: dict[str, dict[str, Any]]
    confusion_matrix: list[list[int]]
    curve: list[dict[str, float]]


def study(
    features: np.ndarray,
    labels: np.ndarray,
    ids: list[str],
    *,
    classes: tuple[str, ...],
    folds: int,
    repeats: int,
    seed: int,
) -> Study:
    """All of it. features: (n, d) float32; labels: (n,) int, of each class two or more; ids name the images. The strength is chosen once, by the
    first repeat's folds, from a coarse grid: it has few ways to fit the noise."""
    num_classes, count = len(classes), len(labels)
    folds = min(folds, int(np.bincount(labels, minlength=num_classes).min()))
    first = logistic_regression.stratified_folds(ids, labels, folds=folds, seed=seed)
    chosen = logistic_regression.cross_validate(
        features, labels, first, num_classes=num_classes, grid=logistic_regression.L2_GRID[::2]
    )
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    accuracies, by_fold, knn = [], [], 0.0
    for repeat in range(repeats):
        fold_of = (
            first if repeat == 0 else logistic_regression.stratified_folds(ids, labels, folds=folds, seed=seed + repeat)
        )
        correct = 0
        for fold in range(folds):
            held = fold_of == fold
            found = logistic_regression.fit(
                features[~held],
                labels[~held],
                num_classes=num_classes,
                l2=chosen.l2,
                gradient_norm=logistic_regression.SELECTION_GRADIENT_NORM,
            )
            predicted = found.head.logits(features[held]).argmax(axis=1)
            np.add.at(confusion, (labels[held], predicted), 1)
            right = int((predicted == labels[held]).sum())
            correct += right
            by_fold.append(right / int(held.sum()))
            if repeat == 0:
                neighbours = logistic_regression.knn_accuracy(
                    features[~held], labels[~held], features[held], labels[held]
                )
                knn += neighbours * int(held.sum()) / count
        accuracies.append(correct / count)
    mean = float(np.mean(accuracies))
    spread = _corrected_spread(np.array(by_fold), folds=folds)
    low, high = wilson(round(mean * count), count)
    return Study(
        classes=classes,
        n=count,
        folds=folds,
        l2=chosen.l2,
        accuracies=accuracies,
        mean=mean,
        ci95=(max(0.0, min(low, mean - spread)), min(1.0, max(high, mean + spread))),
        knn_accuracy=knn,
        per_class=_per_class(confusion, classes, repeats=repeats),
        confusion_matrix=confusion.tolist(),
        curve=_learning_curve(features, labels, ids, num_classes=num_classes, l2=chosen.l2, repeats=repeats, seed=seed),
    )


def _corrected_spread(by_fold: np.ndarray, *, folds: int) -> float:
    """Half the width of the 95 % interval of the mean: the variance over folds, enlarged for the images that they share."""
    if len(by_fold) < 2:
        return 1.0
    variance = float(by_fold.var(ddof=1)) * (1 / len(by_fold) + 1 / (folds - 1))
    return float(_student_t(len(by_fold) - 1) * variance**0.5)


def _student_t(degrees: int) -> float:
    """The 97.5 % quantile, by the expansion of Cornish and Fisher; right to 0.5 % from 4 degrees of freedom."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))


def _per_class(confusion: np.ndarray, classes: tuple[str, ...], *, repeats: int) -> dict[str, dict[str, Any]]:
    predicted, actual, right = confusion.sum(axis=0), confusion.sum(axis=1), np.diag(confusion)
    return {
        name: {
            "n": int(actual[i]) // repeats,
            "precision": float(right[i] / max(predicted[i], 1)),
            "recall": float(right[i] / actual[i]),
            "recall_ci95": wilson(round(int(right[i]) / repeats), int(actual[i]) // repeats),
        }
        for i, name in enumerate(classes)
    }


def _learning_curve(
    features: np.ndarray, labels: np.ndarray, ids: list[str], *, num_classes: int, l2: float, repeats: int, seed: int
) -> list[dict[str, float]]:
    """A fifth of the images measures; of the others so many per class train, the smaller sets inside the larger ones."""
    curve = []
    smallest = int(np.bincount(labels, minlength=num_classes).min())
    sizes = [size for size in LEARNING_CURVE if size <= smallest * 0.8]
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for repeat in range(repeats):
        deal = logistic_regression.stratified_folds(ids, labels, folds=5, seed=seed + 1000 + repeat)
        # ranks within a class: the order in which images join the training set
        order = logistic_regression.stratified_folds(ids, labels, folds=max(len(labels), 2), seed=seed + 2000 + repeat)
        held = deal == 0
        for size in sizes:
            train = np.zeros(len(labels), dtype=bool)
            for label in range(num_classes):
                members = np.flatnonzero((labels == label) & ~held)
                train[members[np.argsort(order[members], kind="stable")[:size]]] = True
            head = logistic_regression.fit(
                features[train],
                labels[train],
                num_classes=num_classes,
                l2=l2,
                gradient_norm=logistic_regression.SELECTION_GRADIENT_NORM,
            ).head
            found[size].append(float((head.logits(features[held]).argmax(axis=1) == labels[held]).mean()))
    for size in sizes:
        values = np.array(found[size])
        deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        curve.append({"per_class": size, "accuracy": float(values.mean()), "sd": deviation})
    return curve
