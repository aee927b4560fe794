"""Nested cross-validation of a linear probe on the features of one candidate, and the selection among several.

Each fold is held out twice over: in the outer loop to evaluate, in the inner loop to choose the strength of the penalty
and the candidate. Nothing that is chosen for an outer fold depends on its images. numpy alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from headstart.data.splits import stratified_split
from headstart.errors import InputError
from headstart.evaluation.statistics import bootstrap, holm, images_needed, paired_counts
from headstart.features.cross_validation import COARSE_GRID
from headstart.features.logistic_regression import SELECTION_GRADIENT_NORM, Head, Problem
from headstart.model.softmax import log_softmax
from headstart.report.comparison import LEVEL, POWER
from headstart.results import PairedComparison
from headstart.wording import plural

_T = TypeVar("_T")
_R = TypeVar("_R")
FEWEST = 3
"""Of the images or groups of a class: one in each of two folds that are left out, and one to train on."""
ALWAYS_ALLOWED = 5
"""Folds that also a class with fewer images may have: the default."""


@dataclass(frozen=True)
class Probe:
    """Results of one candidate, for R repeats of the cross-validation of n images in K folds.

    correct: (R, n) bool and losses: (R, n) float32, nats, of each image by a head that was not trained on it.
    inner_accuracy, inner_loss: (R, K), of the images outside of each fold by heads that were trained on neither them
    nor the fold. l2: (R, K), the strength that these chose for the head that is evaluated on the fold."""

    correct: np.ndarray
    losses: np.ndarray
    inner_accuracy: np.ndarray
    inner_loss: np.ndarray
    l2: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        return float(self.losses.mean(dtype=np.float64))

    @property
    def num_correct(self) -> int:
        """Mean over the repeats, rounded."""
        return _mean_count(self.correct)


def repeats_for(num_images: int) -> int:
    """Repeats of the cross-validation that are cheap: 5 for up to 400 images, 1 from 2,000 on."""
    return min(5, max(1, 2000 // num_images))


def deal_folds(
    units: Sequence[str], strata: Sequence[str], *, classes: Sequence[str], folds: int, repeats: int, seed: int
) -> np.ndarray:
    """(repeats, n) int: the fold of each image. Images of one unit share a fold, as in the split of a run. strata:
    (n,), of the classes.

    Raises InputError for a class that is lacking if two folds are left out, and for more folds than the smallest class
    has units; ALWAYS_ALLOWED are possible with fewer."""
    pairs = {(stratum, unit) for unit, stratum in zip(units, strata, strict=True)}
    number_of = {name: sum(stratum == name for stratum, _ in pairs) for name in classes}
    smallest = min(classes, key=lambda name: number_of[name])
    if folds > max(ALWAYS_ALLOWED, number_of[smallest]):
        raise InputError(
            f"--folds is {folds}, but class {smallest} has {plural(number_of[smallest], 'different training image')} "
            f"or groups of them; use at most {max(ALWAYS_ALLOWED, number_of[smallest])}"
        )
    fold_of = np.zeros((repeats, len(units)), dtype=np.int64)
    for repeat in range(repeats):
        for fold in range(folds):
            split = stratified_split(units, strata, val_fraction=0.5, seed=seed + repeat, folds=folds, fold=fold)
            fold_of[repeat, np.array(split) == "val"] = fold
    code = {name: number for number, name in enumerate(classes)}
    labels = np.array([code[stratum] for stratum in strata])
    for deal in fold_of:
        counts = np.zeros((folds, len(classes)), dtype=np.int64)
        np.add.at(counts, (deal, labels), 1)
        for one, other in combinations(range(folds), 2):
            lacking = np.flatnonzero(counts.sum(axis=0) - counts[one] - counts[other] == 0)
            if len(lacking):
                label = classes[int(lacking[0])]
                number = number_of[label]
                raise InputError(
                    f"class {label} has {plural(number, 'different training image')} or groups of "
                    f"them, too few for nested cross-validation, which needs at least {FEWEST}; add images or remove "
                    "the class"
                )
    return fold_of


def one_after_another(work: Callable[[_T], _R], units: Sequence[_T]) -> list[_R]:
    return [work(unit) for unit in units]


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    fold_of: np.ndarray,
    *,
    num_classes: int,
    grid: Sequence[float] = COARSE_GRID,
    run: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]] = one_after_another,
    stopped: Callable[[], bool] = lambda: False,
) -> Probe:
    """features: (n, d); labels: (n,) int; fold_of: (R, n) int, the same for all candidates. run: calls a function for
    each unit of work, in any order or process, and returns the results in order.

    A head without folds f and g is evaluated on f in the inner loop of g, and on g in that of f."""
    repeats, folds = len(fold_of), int(fold_of.max()) + 1
    grid = tuple(sorted(grid, reverse=True))
    correct, losses = np.zeros((repeats, folds, len(grid))), np.zeros((repeats, folds, len(grid)))
    pairs = [(repeat, *pair) for repeat in range(repeats) for pair in combinations(range(folds), 2)]

    def inner(unit: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(2, strengths) each: number correct and sum of the losses, of the second and of the first fold."""
        repeat, *pair = unit
        deal = fold_of[repeat]
        left_out = np.isin(deal, pair)
        problem = Problem(features[~left_out], labels[~left_out], num_classes=num_classes)
        hits, loss = np.zeros((2, len(grid))), np.zeros((2, len(grid)))
        start: np.ndarray | None = None
        for column, l2 in enumerate(grid):  # from strong to weak, each from the solution before
            if stopped():
                break
            found, start = problem.solve(l2, gradient_norm=SELECTION_GRADIENT_NORM, start=start)
            for row, fold in enumerate(reversed(pair)):
                ours, nats = _evaluate(found.head, features, labels, deal == fold)
                hits[row, column], loss[row, column] = ours.sum(), nats.sum()
        return hits, loss

    for (repeat, *pair), (hits, loss) in zip(pairs, run(inner, pairs), strict=True):
        correct[repeat, pair] += hits
        losses[repeat, pair] += loss
    chosen = losses.argmin(axis=2)  # (R, K)
    outside = np.array([[(deal != fold).sum() for fold in range(folds)] for deal in fold_of])
    l2 = np.array(grid)[chosen]

    def outer(unit: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Of the images of the fold: correct or not, and losses."""
        repeat, fold = unit
        held_out = fold_of[repeat] == fold
        problem = Problem(features[~held_out], labels[~held_out], num_classes=num_classes)
        found, _ = problem.solve(float(l2[repeat, fold]), gradient_norm=SELECTION_GRADIENT_NORM)
        return _evaluate(found.head, features, labels, held_out)

    is_correct = np.zeros(fold_of.shape, dtype=bool)
    nats = np.zeros(fold_of.shape, dtype=np.float32)
    outers = [(repeat, fold) for repeat in range(repeats) for fold in range(folds)]
    for (repeat, fold), (ours, of_image) in zip(outers, run(outer, outers), strict=True):
        held_out = fold_of[repeat] == fold
        is_correct[repeat, held_out], nats[repeat, held_out] = ours, of_image
    at = chosen[..., None]
    return Probe(
        correct=is_correct,
        losses=nats,
        inner_accuracy=np.take_along_axis(correct, at, axis=2)[..., 0] / outside,
        inner_loss=np.take_along_axis(losses, at, axis=2)[..., 0] / outside,
        l2=l2,
    )


def best_of(probes: Sequence[Probe]) -> int:
    """The index of the most accurate candidate; with equal accuracies that of the smallest loss."""
    return _best([probe.accuracy for probe in probes], [probe.loss for probe in probes])


def selected(probes: Sequence[Probe]) -> np.ndarray:
    """(R, K) int: the candidate that the images outside of each fold select, by the rule of `best_of`."""
    accuracies = np.array([probe.inner_accuracy for probe in probes])  # (candidates, R, K)
    losses = np.array([probe.inner_loss for probe in probes])
    _, repeats, folds = accuracies.shape
    return np.array(
        [[_best(accuracies[:, r, k].tolist(), losses[:, r, k].tolist()) for k in range(folds)] for r in range(repeats)]
    )


def promised(probes: Sequence[Probe], fold_of: np.ndarray) -> np.ndarray:
    """(R, n) bool: whether each image is classified correctly by the candidate that the other folds select.

    Its mean estimates the accuracy of whatever candidate is selected. The accuracy of the best one does not: the
    maximum of several estimates is too high (the winner's curse)."""
    chosen = selected(probes)
    correct = np.array([probe.correct for probe in probes])  # (candidates, R, n)
    of_image = np.take_along_axis(chosen, fold_of, axis=1)  # (R, n)
    return np.asarray(np.take_along_axis(correct, of_image[None], axis=0)[0])


def compare_with_best(names: Sequence[str], probes: Sequence[Probe], labels: np.ndarray) -> list[PairedComparison]:
    """The best candidate (`second`) against each other one (`first`), most accurate first. Counts of images are means
    over the repeats, rounded."""
    best = best_of(probes)
    winner = probes[best]
    others = sorted((i for i in range(len(probes)) if i != best), key=lambda i: (-probes[i].accuracy, probes[i].loss))
    tests = [paired_counts(**_counts(probes[i], winner)) for i in others]
    adjusted = holm([test.p_value for test in tests])
    comparisons = []
    for i, test, p_holm in zip(others, tests, adjusted, strict=True):
        losses = (winner.losses.astype(np.float64) - probes[i].losses).mean(axis=0)
        comparisons.append(
            PairedComparison(
                first=names[i],
                second=names[best],
                n=len(labels),
                **asdict(test),
                loss_difference=float(losses.mean()),
                loss_ci95=bootstrap(losses, labels),
                p_holm=p_holm,
                verdict="not proven" if p_holm >= LEVEL else "better" if test.difference > 0 else "worse",
                images_needed=images_needed(
                    gained=test.gained, lost=test.lost, total=len(labels), power=POWER, level=LEVEL / len(tests)
                ),
            )
        )
    return comparisons


def _evaluate(head: Head, features: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of these rows is classified correctly, bool, and its loss, nats."""
    if not rows.any():
        return np.zeros(0, dtype=bool), np.zeros(0)
    logits, ours = head.logits(features[rows]), labels[rows]
    return logits.argmax(axis=1) == ours, -log_softmax(logits)[np.arange(len(ours)), ours]


def _best(accuracies: Sequence[float], losses: Sequence[float]) -> int:
    return max(range(len(accuracies)), key=lambda i: (accuracies[i], -losses[i]))


def _counts(first: Probe, second: Probe) -> dict[str, int]:
    """The arguments of `paired_counts`."""
    total = first.correct.shape[1]
    one, other = first.num_correct, second.num_correct
    both = _mean_count(first.correct & second.correct)
    both = max(one + other - total, both)  # after rounding, no count may be negative
    return {"gained": other - both, "lost": one - both, "both": both, "total": total}


def _mean_count(correct: np.ndarray) -> int:
    return round(float(correct.sum(axis=1).mean()))
