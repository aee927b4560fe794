"""The interval of a proportion."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.stats import wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (120, 127, 0.891, 0.973),
        (146, 153, 0.909, 0.978),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 2, 0.0945, 0.9055),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_known_intervals(successes: int, total: int, low: float, high: float) -> None:
    assert wilson(successes, total) == pytest.approx((low, high), abs=6e-4)


counted = st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(count=counted)
def test_the_interval_holds_the_share_and_lies_in_0_to_1(count: tuple[int, int]) -> None:
    successes, total = count
    low, high = wilson(successes, total)
    assert 0 <= low <= successes / total + 1e-12
    assert successes / total - 1e-12 <= high <= 1
    assert low < high


@given(count=counted)
def test_the_interval_of_the_failures_is_the_mirror_image(count: tuple[int, int]) -> None:
    successes, total = count
    low, high = wilson(successes, total)
    assert wilson(total - successes, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(count=counted)
def test_more_confidence_needs_a_wider_interval(count: tuple[int, int]) -> None:
    narrow, wide = wilson(*count, confidence=0.8), wilson(*count, confidence=0.99)
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("total", [40, 153, 656])
def test_the_interval_covers_the_truth_as_often_as_it_says(total: int, confidence: float) -> None:
    rng = np.random.default_rng(0)
    bounds = np.array([wilson(k, total, confidence=confidence) for k in range(total + 1)])
    truth = rng.uniform(0.05, 0.95, 40_000)
    found = bounds[rng.binomial(total, truth)]
    covered = ((found[:, 0] <= truth) & (truth <= found[:, 1])).mean()
    assert abs(covered - confidence) < 0.02


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_proportion_is_refused(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {total}"):
        wilson(successes, total)


def test_the_bounds_are_plain_numbers() -> None:
    assert all(type(bound) is float and math.isfinite(bound) for bound in wilson(3, 4))
