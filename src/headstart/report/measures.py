"""Numbers of the page that the run did not write down: per class, by confidence, which images to show. numpy alone."""

from dataclasses import dataclass

import numpy as np

from headstart.evaluation.statistics import wilson

MAX_BINS = 10
MIN_IN_BIN = 10


@dataclass(frozen=True)
class Share:
    """`hits` of `n`, with its Wilson 95 % interval; NaN where n is 0."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n if self.n else float("nan")

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(self.hits, self.n) if self.n else (0.0, 1.0)


@dataclass(frozen=True)
class ClassRow:
    """One class on the validation images: recall of its images, precision of the answers that name it."""

    name: str
    trained_on: int
    recall: Share
    precision: Share

    @property
    def f1(self) -> float:
        hits = self.recall.hits
        return 2 * hits / (self.recall.n + self.precision.n) if self.recall.n + self.precision.n else float("nan")


@dataclass(frozen=True)
class Bin:
    """Images whose predictions have similar confidence: its mean, and the share of correct ones."""

    confidence: float
    is_correct: Share


def per_class(confusion: np.ndarray, classes: tuple[str, ...], trained_on: dict[str, int]) -> list[ClassRow]:
    """confusion: (C, C) int, row: what it is, column: what was answered."""
    hits, is_class, said = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        ClassRow(
            name, trained_on.get(name, 0), Share(int(hits[i]), int(is_class[i])), Share(int(hits[i]), int(said[i]))
        )
        for i, name in enumerate(classes)
    ]


def confusions(confusion: np.ndarray, classes: tuple[str, ...], *, limit: int) -> list[tuple[str, str, int, Share]]:
    """The most frequent mistakes: (is, answered, count, share of the class)."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(place), len(classes)) for place in order]
    return [
        (classes[i], classes[j], int(wrong[i, j]), Share(int(wrong[i, j]), int(confusion[i].sum())))
        for i, j in pairs
        if wrong[i, j]
    ]


def bins(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Equally filled bins by confidence, (n,) float64 and (n,) bool, so that each point of the diagram weighs the same."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(1, min(MAX_BINS, len(order) // MIN_IN_BIN)))
    return [
        Bin(float(confidence[part].mean()), Share(int(right[part].sum()), len(part))) for part in parts if len(part)
    ]


def worst_mistakes(confidence: np.ndarray, right: np.ndarray, *, limit: int) -> np.ndarray:
    """Rows that are wrong, the surest first."""
    rows = np.flatnonzero(~right)
    return rows[np.argsort(-confidence[rows], kind="stable")][:limit]


def weakest_hits(confidence: np.ndarray, right: np.ndarray, *, limit: int) -> np.ndarray:
    """Rows that are right, the least sure first."""
    rows = np.flatnonzero(right)
    return rows[np.argsort(confidence[rows], kind="stable")][:limit]
