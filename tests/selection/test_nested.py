"""Nested cross-validation, the expected accuracy of what it selects, and the comparison with the others."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from support.choices import a_choice, dealt, drawn

from headstart.errors import InputError
from headstart.evaluation.statistics import images_needed, paired
from headstart.features.logistic_regression import SELECTION_GRADIENT_NORM, fit
from headstart.results import Choice
from headstart.selection.nested import (
    best_of,
    compare_with_best,
    deal_folds,
    probe,
    promised,
    repeats_for,
    selected,
)

GRID = (100.0, 1.0)


def blobs(n: int, *, width: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes; the noise of two draws of the same labels is independent."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.random.default_rng(0).normal(0, spread, (3, width))
    return (rng.normal(0, 1, (n, width)) + centres[labels]).astype(np.float32), labels


STANDARD_ERRORS = 3
"""Stated tolerance: an unbiased estimate exceeds it in 1 of 370 seeds."""


def bias_and_error(estimates: list[float], means: list[float]) -> tuple[float, float]:
    """Of the mean difference from the mean accuracy of the same draw: its value and its standard error."""
    differences = np.array(estimates) - means
    return float(differences.mean()), float(differences.std(ddof=1)) / np.sqrt(len(differences))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expected_accuracy_of_20_equal_candidates_is_unbiased_and_the_maximum_is_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(200) % 2
    fold_of = dealt(labels, folds=5, repeats=2)
    expected, maxima, means = [], [], []
    for _ in range(400):
        # images differ in difficulty, in the same way for all candidates
        ease = rng.beta(8.5, 1.5, 200)
        candidates = [drawn(np.tile(rng.random(200) < ease, (2, 1)), fold_of) for _ in range(20)]
        expected.append(float(promised(candidates, fold_of).mean()))
        maxima.append(max(candidate.accuracy for candidate in candidates))
        means.append(float(np.mean([candidate.accuracy for candidate in candidates])))
    bias, error = bias_and_error(expected, means)
    assert abs(bias) < STANDARD_ERRORS * error
    assert error < 0.002
    bias, error = bias_and_error(maxima, means)
    assert bias > STANDARD_ERRORS * error
    assert bias > 0.03


@pytest.mark.extended
def test_the_expected_accuracy_of_real_probes_on_20_equally_informative_features_is_unbiased() -> None:
    expected, maxima, means = [], [], []
    for draw in range(40):
        labels = np.arange(60) % 3
        fold_of = dealt(labels, folds=3)
        candidates = [
            probe(
                blobs(60, width=6, spread=0.8, seed=1000 * draw + number)[0],
                labels,
                fold_of,
                num_classes=3,
                grid=GRID,
            )
            for number in range(20)
        ]
        expected.append(float(promised(candidates, fold_of).mean()))
        maxima.append(max(candidate.accuracy for candidate in candidates))
        means.append(float(np.mean([candidate.accuracy for candidate in candidates])))
    bias, error = bias_and_error(expected, means)
    assert abs(bias) < STANDARD_ERRORS * error
    assert error < 0.02
    bias, error = bias_and_error(maxima, means)
    assert bias > STANDARD_ERRORS * error


@pytest.mark.parametrize(("number", "folds", "most"), [(8, 9, 8), (3, 6, 5)])
def test_more_folds_than_the_smallest_class_has_images_are_refused(number: int, folds: int, most: int) -> None:
    labels, classes = ["common"] * 30 + ["rare"] * number, ["common", "rare"]
    names = [str(row) for row in range(len(labels))]
    with pytest.raises(InputError, match=rf"--folds is {folds}, but class rare has {number} .* at most {most}$"):
        deal_folds(names, labels, classes=classes, folds=folds, repeats=1, seed=0)
    assert deal_folds(names, labels, classes=classes, folds=most, repeats=1, seed=0).max() == most - 1


def test_a_stop_is_noticed_within_the_work_on_one_fold() -> None:
    features, labels = blobs(60, width=8, spread=0.6, seed=2)
    calls = []

    def stopped() -> bool:
        calls.append(1)
        return True

    found = probe(features, labels, dealt(labels), num_classes=3, stopped=stopped)
    assert len(calls) == 6  # one for each pair of folds, although the grid has many strengths
    assert found.inner_loss.tolist() == [[0.0] * 4]


def test_a_better_candidate_is_selected_in_every_fold_and_keeps_its_accuracy() -> None:
    labels = np.arange(90) % 3
    fold_of = dealt(labels)
    good, bad = (np.tile(np.arange(90) % every != 0, (1, 1)) for every in (10, 3))
    candidates = [drawn(bad, fold_of), drawn(good, fold_of)]
    assert best_of(candidates) == 1
    assert selected(candidates).tolist() == [[1, 1, 1, 1]]
    assert promised(candidates, fold_of).tolist() == good.tolist()


def test_of_equal_accuracies_the_smaller_loss_is_selected() -> None:
    fold_of = dealt(np.arange(30) % 3)
    one = drawn(np.tile(np.arange(30) % 5 != 0, (1, 1)), fold_of)
    other = replace(one, losses=one.losses / 2, inner_loss=one.inner_loss / 2)
    assert best_of([one, other]) == 1
    assert (selected([one, other]) == 1).all()


def test_nothing_that_is_chosen_for_a_fold_depends_on_its_labels() -> None:
    features, labels = blobs(72, width=8, spread=0.5, seed=1)
    fold_of = dealt(labels)
    before = probe(features, labels, fold_of, num_classes=3)
    changed = np.where(fold_of[0] == 2, (labels + 1) % 3, labels)
    after = probe(features, changed, fold_of, num_classes=3)
    for name in ("inner_accuracy", "inner_loss", "l2"):
        assert getattr(before, name)[0, 2] == getattr(after, name)[0, 2], name
    assert before.inner_loss[0, 1] != after.inner_loss[0, 1]


def test_an_image_is_evaluated_by_the_head_of_the_other_folds() -> None:
    features, labels = blobs(60, width=8, spread=0.6, seed=2)
    fold_of = dealt(labels, repeats=2)
    found = probe(features, labels, fold_of, num_classes=3)
    for repeat, deal in enumerate(fold_of):
        for fold in range(4):
            train = deal != fold
            head = fit(
                features[train],
                labels[train],
                num_classes=3,
                l2=float(found.l2[repeat, fold]),
                gradient_norm=SELECTION_GRADIENT_NORM,
            ).head
            expected = head.logits(features[~train]).argmax(axis=1) == labels[~train]
            assert found.correct[repeat, ~train].tolist() == expected.tolist()
    assert found.num_correct == round(found.correct.sum() / 2)


def test_the_order_of_the_work_does_not_matter() -> None:
    features, labels = blobs(45, width=8, spread=0.6, seed=3)
    fold_of = dealt(labels)

    def backwards(work, units):
        return [work(unit) for unit in reversed(units)][::-1]

    one, other = (probe(features, labels, fold_of, num_classes=3, **options) for options in ({}, {"run": backwards}))
    for name, value in vars(one).items():
        assert np.array_equal(value, getattr(other, name)), name


def test_images_of_a_unit_share_a_fold_and_folds_are_balanced() -> None:
    units = [f"patient {row // 4}" for row in range(120)]
    labels = [str(row // 4 % 3) for row in range(120)]
    fold_of = deal_folds(units, labels, classes="012", folds=5, repeats=3, seed=0)
    for deal in fold_of:
        assert all(len(set(deal[start : start + 4])) == 1 for start in range(0, 120, 4))
        assert np.bincount(deal).tolist() == [24] * 5
    assert len({tuple(deal) for deal in fold_of.tolist()}) == 3


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_class_that_two_folds_could_hold_out_whole_is_named(number: int) -> None:
    labels, classes = ["common"] * 20 + ["rare"] * number, ["common", "rare"]
    with pytest.raises(InputError, match=rf"\brare\b.*\b{number}\b"):
        deal_folds([str(row) for row in range(len(labels))], labels, classes=classes, folds=5, repeats=1, seed=0)
    labels = ["common"] * 20 + ["rare"] * 3
    assert deal_folds([str(row) for row in range(23)], labels, classes=classes, folds=5, repeats=1, seed=0).shape == (
        1,
        23,
    )


def test_a_comparison_is_that_of_paired_classifiers() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    fold_of = dealt(labels)
    outcomes = [rng.random((1, 300)) < share for share in (0.7, 0.9, 0.88)]
    candidates = [drawn(correct, fold_of) for correct in outcomes]
    best = best_of(candidates)
    names = ["low", "high", "near"]
    found = compare_with_best(names, candidates, labels)
    assert [comparison.second for comparison in found] == [names[best]] * 2
    assert [comparison.first for comparison in found] == ["near", "low"]
    for comparison in found:
        other = outcomes[names.index(comparison.first)][0]
        expected = paired(other.tolist(), outcomes[best][0].tolist())
        assert (comparison.gained, comparison.lost) == (expected.gained, expected.lost)
        assert comparison.difference == pytest.approx(expected.difference)
        assert comparison.ci95 == pytest.approx(expected.ci95)
        assert comparison.p_value == pytest.approx(expected.p_value)
    near, low = found
    assert (near.verdict, low.verdict) == ("not proven", "better")
    assert near.images_needed == images_needed(gained=near.gained, lost=near.lost, total=300, level=0.05 / 2)


def test_counts_over_repeats_add_up() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(50) % 2
    fold_of = dealt(labels, repeats=3)
    for _ in range(200):
        candidates = [drawn(rng.random((3, 50)) < share, fold_of) for share in rng.choice([0.02, 0.5, 0.95], 2)]
        (found,) = compare_with_best(["a", "b"], candidates, labels)
        one, other = (candidates["ab".index(name)].num_correct for name in (found.first, found.second))
        neither = 50 - one - found.gained  # one: both or only the first
        assert min(found.gained, found.lost, neither) >= 0
        assert found.gained - found.lost == other - one


@pytest.mark.parametrize(("images", "repeats"), [(30, 5), (400, 5), (700, 2), (2000, 1), (10_000, 1)])
def test_repeats_are_for_small_data(images: int, repeats: int) -> None:
    assert repeats_for(images) == repeats


def test_a_result_is_read_as_it_was_written() -> None:
    choice = a_choice()
    assert Choice.from_json(choice.to_json()) == choice
    assert choice.verdict(choice.candidates[0]) == "chosen"
    assert choice.verdict(choice.candidates[1]) == "better"
    assert "\n  a: accuracy 60.0%, better" in repr(choice)


@pytest.mark.parametrize("text", ["{}", "[]", "{", json.dumps({"comparisons": [], "candidates": [{"name": "a"}]})])
def test_another_text_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=re.compile("headstart choose|Expecting")):
        Choice.from_json(text)
