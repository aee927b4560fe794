"""Recall and precision of each class with intervals, and the most frequent confusions, from a confusion matrix."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from headstart.evaluation.statistics import wilson


@dataclass(frozen=True)
class Share:
    """`count` of `n`, with its Wilson 95% interval; NaN where n is 0."""

    count: int
    n: int

    @property
    def value(self) -> float:
        return self.count / self.n if self.n else float("nan")

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(self.count, self.n) if self.n else (0.0, 1.0)


@dataclass(frozen=True)
class ClassRow:
    """One class on the validation images. recall: of the images of the class; precision: of the predictions of it."""

    name: str
    num_training: int
    recall: Share
    precision: Share

    @property
    def f1(self) -> float:
        total = self.recall.n + self.precision.n
        return 2 * self.recall.count / total if total else float("nan")


def per_class(
    confusion: np.ndarray, classes: tuple[str, ...], num_training_images: Mapping[str, int]
) -> list[ClassRow]:
    """confusion: (C, C) int, rows: true class, columns: predicted class."""
    counts = (confusion.diagonal().tolist(), confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist())
    return [
        ClassRow(name, num_training_images.get(name, 0), Share(correct, true), Share(correct, predicted))
        for name, correct, true, predicted in zip(classes, *counts, strict=True)
    ]


def worst_first(rows: list[ClassRow]) -> list[ClassRow]:
    """In ascending order of recall, then of the lower end of its interval; classes without images last."""
    return sorted(rows, key=lambda row: (not row.recall.n, row.recall.value if row.recall.n else 0, row.recall.ci95[0]))


def confusions(confusion: np.ndarray, classes: tuple[str, ...], *, limit: int) -> list[tuple[str, str, Share]]:
    """The most frequent errors: true class, predicted class, share of the images of the true class."""
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(place), len(classes)) for place in order]
    return [
        (classes[i], classes[j], Share(int(errors[i, j]), int(confusion[i].sum()))) for i, j in pairs if errors[i, j]
    ]
