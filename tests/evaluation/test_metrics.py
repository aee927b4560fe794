"""Metrics of a table of predictions: those of scikit-learn, and the same through the `evaluate` library."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from headstart.evaluation.evaluate_metrics import LabelMetrics, ProbabilityMetrics
from headstart.evaluation.metrics import brier_scores, calibration_error, compute, log_loss
from headstart.evaluation.predictions import Predictions, describe
from headstart.evaluation.statistics import wilson


def table(num_classes: int, num_samples: int, *, seed: int, absent: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, labels); the last `absent` classes do not occur among the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes - absent, num_samples)
    logits = rng.normal(0, 1.5, (num_samples, num_classes))
    logits[np.arange(num_samples), labels] += 1
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), labels


TABLES = [
    pytest.param(2, 40, 0, id="two classes"),
    pytest.param(3, 100, 0, id="three classes"),
    pytest.param(3, 30, 1, id="three classes, one absent"),
    pytest.param(7, 200, 0, id="seven classes"),
    pytest.param(7, 60, 3, id="seven classes, three absent"),
    pytest.param(3, 1, 0, id="one sample"),
]


@pytest.mark.parametrize(("num_classes", "num_samples", "absent"), TABLES)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_metrics_are_scikit_learns(num_classes: int, num_samples: int, absent: int) -> None:
    probabilities, labels = table(num_classes, num_samples, seed=num_classes + num_samples, absent=absent)
    values = compute(probabilities, labels)
    predicted, codes = probabilities.argmax(axis=1), list(range(num_classes))
    options: dict[str, Any] = {"labels": codes, "average": None, "zero_division": math.nan}
    assert values["n"] == num_samples
    assert values["correct"] == (predicted == labels).sum()
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert values["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    assert values["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    for name, score in (("precision", reference.precision_score), ("recall", reference.recall_score)):
        found = [math.nan if value is None else value for value in values[name]]
        assert found == pytest.approx(score(labels, predicted, **options).tolist(), nan_ok=True)
    assert values["confusion_matrix"] == reference.confusion_matrix(labels, predicted, labels=codes).tolist()
    assert values["loss"] == pytest.approx(reference.log_loss(labels, probabilities, labels=codes))


def test_top_five_is_scikit_learns() -> None:
    probabilities, labels = table(12, 300, seed=0)
    expected = reference.top_k_accuracy_score(labels, probabilities, k=5, labels=list(range(12)))
    assert compute(probabilities, labels)["top5_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(("num_classes", "reported"), [(2, False), (5, False), (6, True)])
def test_top_5_accuracy_is_reported_for_more_than_5_classes(num_classes: int, reported: bool) -> None:
    assert ("top5_accuracy" in compute(*table(num_classes, 20, seed=0))) == reported


def test_a_class_that_is_never_predicted_counts_as_0_in_means_and_has_no_precision() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0]])
    values = compute(probabilities, np.array([0, 1, 0]))
    assert values["balanced_accuracy"] == 0.5
    assert values["macro_f1"] == pytest.approx(0.4)
    assert values["precision"] == [pytest.approx(2 / 3), None, None]
    assert values["recall"] == [1, 0, None]


def test_a_class_without_images_and_predictions_has_null_for_every_number() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    rows = describe(Predictions(np.log(probabilities + 1e-9).astype(np.float32), np.array([0, 1, 1])), "abc")[
        "per_class"
    ]
    assert {key: value for key, value in rows["c"].items() if value is not None} == {"n": 0}
    assert rows["b"]["recall"] == 0.5


def test_the_loss_of_an_impossible_truth_is_large_and_finite() -> None:
    loss = log_loss(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, 0]))
    assert 300 < loss < 400


def test_values_fit_into_json() -> None:
    values = compute(*table(7, 50, seed=1))
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_the_order_of_the_rows_does_not_matter() -> None:
    probabilities, labels = table(3, 50, seed=2)
    mixed = np.random.default_rng(3).permutation(50)
    again = compute(probabilities[mixed], labels[mixed])
    assert again.pop("loss") == pytest.approx((values := compute(probabilities, labels)).pop("loss"))
    assert again == values


@pytest.mark.parametrize("num_classes", [3, 7])
def test_the_metrics_of_the_evaluate_library_are_the_same_functions(num_classes: int, tmp_path: Path) -> None:
    probabilities, labels = table(num_classes, 120, seed=4)
    options = {"keep_in_memory": True, "cache_dir": str(tmp_path)}
    predicted = probabilities.argmax(axis=1)
    of_labels = LabelMetrics(**options).compute(predictions=predicted, references=labels, num_classes=num_classes)
    of_probabilities = ProbabilityMetrics(**options).compute(predictions=probabilities, references=labels)
    assert {**of_labels, **of_probabilities} == compute(probabilities, labels)


def test_computing_leaves_no_files_and_no_random_state_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    compute(*table(3, 20, seed=0))
    assert list(tmp_path.iterdir()) == []
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_intervals_stay_in_range_and_one_image_has_none() -> None:
    right = Predictions(np.array([[4.0, 0.0]] * 5 + [[0.0, 6.0]], np.float32), np.zeros(6, np.int64))
    values = describe(right, ("ants", "bees"))
    assert values["loss_ci95"][0] == 0.0
    assert 0.0 <= values["brier_ci95"][0] < values["brier_ci95"][1] <= 2.0
    one = describe(Predictions(right.logits[:1], right.labels[:1]), ("ants", "bees"))
    assert one["loss_ci95"] is None
    assert one["brier_ci95"] is None
    assert one["accuracy_ci95"] == pytest.approx(wilson(1, 1))


def test_brier_and_log_loss_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    labels = np.array([0, 2])
    assert brier_scores(probabilities, labels) == pytest.approx([0.3**2 + 0.2**2 + 0.1**2, 0.1**2 + 0.8**2 + 0.9**2])
    assert log_loss(probabilities, labels) == pytest.approx(-(math.log(0.7) + math.log(0.1)) / 2)


# ------------------------------------------------------------------------------------------------- calibration error


def draw_calibrated(rng: np.random.Generator, n: int, *, too_sure: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of two classes, and labels that are right with those probabilities less `too_sure`."""
    top = rng.uniform(0.6, 0.95, n)
    right = rng.random(n) < top - too_sure
    return np.stack([top, 1 - top], axis=1), np.where(right, 0, 1)


@pytest.mark.slow
def test_a_calibrated_model_stays_below_the_limit_of_chance_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    found = [calibration_error(*draw_calibrated(rng, 153), seed=draw) for draw in range(1000)]
    below = np.mean([error.ece <= error.ece_by_chance95 for error in found])
    assert below == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("too_sure", [0.08, 0.15])
@pytest.mark.slow
def test_the_calibration_error_is_found_without_much_bias(too_sure: float) -> None:
    rng = np.random.default_rng(0)
    found = [calibration_error(*draw_calibrated(rng, 656, too_sure=too_sure)) for _ in range(200)]
    assert np.mean([error.ece for error in found]) == pytest.approx(too_sure, abs=0.01)
    assert np.mean([error.ece > error.ece_by_chance95 for error in found]) > 0.9


def test_debiasing_takes_off_a_part_of_what_chance_adds() -> None:
    rng = np.random.default_rng(0)
    debiased, plain = [], []
    for _ in range(300):
        probabilities, labels = draw_calibrated(rng, 153)
        debiased.append(calibration_error(probabilities, labels).ece)
        confidence = probabilities[:, 0]
        order = np.argsort(confidence)
        bins = np.array_split(np.stack([confidence, labels == 0])[:, order], 7, axis=1)
        plain.append(sum(abs(part[0].mean() - part[1].mean()) * part.shape[1] for part in bins) / 153)
    assert np.mean(debiased) < 0.7 * np.mean(plain)
