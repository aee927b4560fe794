"""How well a frozen backbone separates the classes of a folder, from repeated fits on its features. No head is kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.evaluation.metrics import confusion_matrix, precision, recall
from headstart.evaluation.statistics import mean_interval, wilson
from headstart.features.cross_validation import COARSE_GRID, cross_validate, out_of_fold_logits, stratified_folds
from headstart.features.logistic_regression import SELECTION_GRADIENT_NORM, fit
from headstart.features.nearest_neighbours import knn_accuracy

LEARNING_CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Study:
    """The results. accuracies: (repeats,), of k-fold cross-validation over all images, each repeat with other folds.

    folds: of each cross-validation, at most the number of images of the smallest class.
    ci95: of the mean over repeats, by the corrected t of Nadeau and Bengio (2003), as the folds share images; at least
    Wilson's interval of one evaluation of all images, because folds may agree by chance.
    curve: number of training images per class -> mean accuracy on other images, standard deviation over repeats.
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
    """features: (n, d) float32; labels: (n,) int, two or more of each class; ids: (n,), names of the images.

    The strength is chosen once, from a coarse grid and by the folds of the first repeat, so it hardly fits the noise.
    """
    num_classes, count = len(classes), len(labels)
    folds = min(folds, int(np.bincount(labels, minlength=num_classes).min()))
    fold_of = [stratified_folds(ids, labels, folds=folds, seed=seed + repeat) for repeat in range(repeats)]
    l2 = cross_validate(features, labels, fold_of[0], num_classes=num_classes, grid=COARSE_GRID).l2
    predicted = np.array(
        [out_of_fold_logits(features, labels, deal, num_classes=num_classes, l2=l2).argmax(axis=1) for deal in fold_of]
    )  # (repeats, n)
    correct = predicted == labels
    confusion = confusion_matrix(predicted.ravel(), np.tile(labels, repeats), num_classes=num_classes)
    by_fold = [
        float(hits[deal == fold].mean()) for hits, deal in zip(correct, fold_of, strict=True) for fold in range(folds)
    ]
    return Study(
        classes=classes,
        n=count,
        folds=folds,
        l2=l2,
        accuracies=correct.mean(axis=1).tolist(),
        mean=float(correct.mean()),
        ci95=_interval(float(correct.mean()), by_fold, folds=folds, count=count),
        knn_accuracy=_cross_validated_knn(features, labels, fold_of[0]),
        per_class=_per_class(confusion, classes, repeats=repeats),
        confusion_matrix=confusion.tolist(),
        curve=_learning_curve(features, labels, ids, num_classes=num_classes, l2=l2, repeats=repeats, seed=seed),
    )


def _interval(mean: float, by_fold: list[float], *, folds: int, count: int) -> tuple[float, float]:
    """See Study.ci95. by_fold: the accuracy of every fold of every repeat."""
    corrected = mean_interval(by_fold, overlap=1 / (folds - 1))
    assert corrected is not None  # there are two folds at least
    reach = (corrected[1] - corrected[0]) / 2
    low, high = wilson(round(mean * count), count)
    return max(0.0, min(low, mean - reach)), min(1.0, max(high, mean + reach))


def _cross_validated_knn(features: np.ndarray, labels: np.ndarray, fold_of: np.ndarray) -> float:
    """The accuracy of the nearest neighbours among the other folds."""
    total = 0.0
    for fold in range(int(fold_of.max()) + 1):
        held = fold_of == fold
        total += knn_accuracy(features[~held], labels[~held], features[held], labels[held]) * int(held.sum())
    return total / len(labels)


def _per_class(confusion: np.ndarray, classes: tuple[str, ...], *, repeats: int) -> dict[str, dict[str, Any]]:
    precisions, recalls = precision(confusion).tolist(), recall(confusion).tolist()
    correct, actual = np.diag(confusion).tolist(), (confusion.sum(axis=1) // repeats).tolist()
    return {
        name: {
            "n": actual[i],
            "precision": precisions[i],
            "recall": recalls[i],
            "recall_ci95": wilson(round(correct[i] / repeats), actual[i]),
        }
        for i, name in enumerate(classes)
    }


def _learning_curve(
    features: np.ndarray, labels: np.ndarray, ids: list[str], *, num_classes: int, l2: float, repeats: int, seed: int
) -> list[dict[str, float]]:
    """20% of the images are held out. Training sets of increasing size per class are drawn from the others; each
    contains the smaller ones."""
    smallest = int(np.bincount(labels, minlength=num_classes).min())
    accuracies: dict[int, list[float]] = {size: [] for size in LEARNING_CURVE if size <= smallest * 0.8}
    for repeat in range(repeats):
        held = stratified_folds(ids, labels, folds=5, seed=seed + 1000 + repeat) == 0
        # ranks within a class: the order in which images join the training set
        order = stratified_folds(ids, labels, folds=max(len(labels), 2), seed=seed + 2000 + repeat)
        joining = [
            members[np.argsort(order[members], kind="stable")]
            for members in (np.flatnonzero((labels == label) & ~held) for label in range(num_classes))
        ]
        for size, found in accuracies.items():
            train = np.sort(np.concatenate([members[:size] for members in joining]))
            head = fit(
                features[train],
                labels[train],
                num_classes=num_classes,
                l2=l2,
                gradient_norm=SELECTION_GRADIENT_NORM,
            ).head
            found.append(float((head.logits(features[held]).argmax(axis=1) == labels[held]).mean()))
    return [
        {
            "per_class": size,
            "accuracy": float(np.mean(found)),
            "sd": float(np.std(found, ddof=1)) if len(found) > 1 else 0.0,
        }
        for size, found in accuracies.items()
    ]
