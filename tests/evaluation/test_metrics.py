"""Metrics of a table of predictions, against scikit-learn."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from headstart.evaluation.metrics import log_loss, measure
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
    values = measure(probabilities, labels)
    predicted, codes = probabilities.argmax(axis=1), list(range(num_classes))
    options: dict[str, Any] = {"labels": codes, "average": None, "zero_division": 0}
    assert values["n"] == num_samples
    assert values["correct"] == (predicted == labels).sum()
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert values["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    assert values["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    assert values["precision"] == pytest.approx(reference.precision_score(labels, predicted, **options).tolist())
    assert values["recall"] == pytest.approx(reference.recall_score(labels, predicted, **options).tolist())
    assert values["confusion_matrix"] == reference.confusion_matrix(labels, predicted, labels=codes).tolist()
    assert values["loss"] == pytest.approx(reference.log_loss(labels, probabilities, labels=codes))


def test_top_five_is_scikit_learns() -> None:
    probabilities, labels = table(12, 300, seed=0)
    expected = reference.top_k_accuracy_score(labels, probabilities, k=5, labels=list(range(12)))
    assert measure(probabilities, labels)["top5_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(("num_classes", "told"), [(2, False), (5, False), (6, True)])
def test_top_5_accuracy_is_reported_for_more_than_5_classes(num_classes: int, told: bool) -> None:
    assert ("top5_accuracy" in measure(*table(num_classes, 20, seed=0))) == told


def test_a_class_that_is_never_predicted_counts_as_0_and_not_as_nothing() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0]])
    values = measure(probabilities, np.array([0, 1, 0]))
    assert values["balanced_accuracy"] == 0.5
    assert values["macro_f1"] == pytest.approx(0.4)
    assert values["precision"] == pytest.approx([2 / 3, 0, 0])


def test_the_loss_of_an_impossible_truth_is_large_and_finite() -> None:
    loss = log_loss(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, 0]))
    assert 300 < loss < 400


def test_values_fit_into_json() -> None:
    values = measure(*table(7, 50, seed=1))
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_the_order_of_the_rows_does_not_matter() -> None:
    probabilities, labels = table(3, 50, seed=2)
    mixed = np.random.default_rng(3).permutation(50)
    again = measure(probabilities[mixed], labels[mixed])
    assert again.pop("loss") == pytest.approx((values := measure(probabilities, labels)).pop("loss"))
    assert again == values


def test_measuring_leaves_no_files_and_no_random_state_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    measure(*table(3, 20, seed=0))
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
