"""One softmax for the whole tree."""

from pathlib import Path

import numpy as np
import pytest
from scipy import special

import headstart
from headstart.model.softmax import log_softmax, softmax


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_both_have_the_bits_of_scipy(scale: float) -> None:
    logits = np.random.default_rng(0).normal(0, scale, (200, 7))
    assert np.array_equal(softmax(logits), special.softmax(logits, axis=1))
    assert np.array_equal(log_softmax(logits), special.log_softmax(logits, axis=1))


def test_float32_logits_give_float64_probabilities_that_sum_to_one() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, 4)).astype(np.float32)
    for rows in (logits, logits[0], logits[:0]):
        assert softmax(rows).dtype == log_softmax(rows).dtype == np.float64
        assert softmax(rows).shape == rows.shape
        assert softmax(rows).sum(axis=-1) == pytest.approx(1.0, abs=1e-15)


def test_no_other_file_computes_a_softmax_by_hand() -> None:
    """The loss of the logistic regression works in place, and a calibration error needs the density of a normal."""
    root = Path(headstart.__file__).parent
    names = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if "np.exp(" in path.read_text()}
    assert names == {"model/softmax.py", "features/logistic_regression.py", "evaluation/metrics.py"}
