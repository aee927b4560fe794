"""Candidates of `headstart choose` with given outcomes, and a result, without images."""

from dataclasses import replace

import numpy as np

from headstart.results import Candidate, Choice
from headstart.selection.nested import Probe, compare_with_best, deal_folds


def drawn(correct: np.ndarray, fold_of: np.ndarray) -> Probe:
    """A candidate with these outcomes, (R, n) bool: the same in the inner and in the outer loop."""
    folds = int(fold_of.max()) + 1
    outside = np.array(
        [[hits[deal != fold].mean() for fold in range(folds)] for hits, deal in zip(correct, fold_of, strict=True)]
    )
    return Probe(
        correct=correct,
        losses=(~correct).astype(np.float32),
        inner_accuracy=outside,
        inner_loss=1 - outside,
        l2=np.ones(outside.shape),
    )


def dealt(labels: np.ndarray, *, folds: int = 4, repeats: int = 1) -> np.ndarray:
    names = [f"image {row}" for row in range(len(labels))]
    return deal_folds(
        names, [str(label) for label in labels], classes="012"[: labels.max() + 1], folds=folds, repeats=repeats, seed=0
    )


def a_choice() -> Choice:
    fold_of = dealt(np.arange(40) % 2)
    rng = np.random.default_rng(0)
    candidates = [drawn(rng.random((1, 40)) < share, fold_of) for share in (0.6, 0.95)]
    row = Candidate(
        "b", "lite0", "imagenet", 224, 38, 0.95, (0.8, 0.99), 0.1, 0.75, 4_000_000, 16_000_000, 300.5, 35.25
    )
    return Choice(
        data="photos",
        classes=("ants", "bees"),
        n=40,
        folds=4,
        repeats=1,
        seed=0,
        machine="cpu",
        chosen="b",
        expected_accuracy=0.9,
        expected_ci95=(0.8, 0.95),
        candidates=(row, replace(row, name="a", accuracy=0.6)),
        comparisons=tuple(compare_with_best(["a", "b"], candidates, np.arange(40) % 2)),
        command="headstart train",
        notes=("a note",),
    )
