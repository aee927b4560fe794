"""Every interval covers the true value at its nominal rate, over 1,000 draws or more; tests are those of the papers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation.statistics import (
    balanced_accuracy_interval,
    bootstrap,
    holm,
    images_needed,
    mean_interval,
    newcombe,
    paired,
    student_t,
    wilson,
)

DRAWS = 1000


def covered(intervals: list[tuple[float, float]], truth: float) -> float:
    low, high = np.array(intervals).T
    return float(((low <= truth) & (truth <= high)).mean())


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
def test_the_interval_covers_the_truth_at_the_nominal_rate(total: int, confidence: float) -> None:
    rng = np.random.default_rng(0)
    bounds = np.array([wilson(k, total, confidence=confidence) for k in range(total + 1)])
    truth = rng.uniform(0.05, 0.95, 40_000)
    found = bounds[rng.binomial(total, truth)]
    covered = ((found[:, 0] <= truth) & (truth <= found[:, 1])).mean()
    assert abs(covered - confidence) < 0.02


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_counts_that_form_no_proportion_are_refused(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {total}"):
        wilson(successes, total)


def test_the_bounds_are_plain_numbers() -> None:
    assert all(type(bound) is float and math.isfinite(bound) for bound in wilson(3, 4))


# ------------------------------------------------------------------------------------------------- losses


def draw_losses(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Log losses of two classes that are skewed, and not alike."""
    labels = np.arange(n) % 2
    return np.log1p(np.exp(rng.normal(-2.0 + 0.5 * labels, 2.0))), labels


@pytest.mark.slow
def test_the_bootstrap_interval_covers_the_mean_loss_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    truth = draw_losses(rng, 2_000_000)[0].mean()
    intervals = [bootstrap(*draw_losses(rng, 153), draws=400, seed=draw) for draw in range(DRAWS)]
    assert covered(intervals, truth) == pytest.approx(0.95, abs=0.02)


def test_the_bootstrap_keeps_the_classes_in_their_shares() -> None:
    """Two classes whose values differ by much more than they vary within: drawn without regard to the class, the
    number of each would vary, and the interval would be 20 times as wide."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    low, high = bootstrap(rng.normal(10.0 * labels, 0.5), labels)  # type: ignore[misc]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(200), rel=0.15)


@pytest.mark.parametrize(
    ("values", "labels"), [([0.7], [0]), ([0.3, 0.3, 0.1, 0.1], [0, 0, 1, 1]), ([0.1] * 7, [0, 0, 0, 1, 1, 1, 2])]
)
def test_what_does_not_vary_has_no_interval(values: list[float], labels: list[int]) -> None:
    assert bootstrap(np.array(values), np.array(labels)) is None


def test_two_images_give_a_wide_interval() -> None:
    """Student's t with one degree of freedom, as half of all draws do not vary."""
    reach = student_t(0.975, 1) * 2.9 / math.sqrt(2) / math.sqrt(2)
    assert bootstrap(np.array([0.1, 3.0]), np.array([0, 1])) == pytest.approx((1.55 - reach, 1.55 + reach))
    assert bootstrap(np.array([0.1, 3.0]), np.array([0, 1]), lowest=0.0, highest=2.0) == (0.0, 2.0)


def test_the_bootstrap_stays_where_a_mean_can_be() -> None:
    values = np.array([0.01, 0.02, 0.1, 1.9, 0.03, 0.05])
    low, high = bootstrap(values, np.zeros(6))  # type: ignore[misc]
    assert low < 0 or high > 2
    assert bootstrap(values, np.zeros(6), lowest=0.0, highest=2.0) == (max(low, 0.0), min(high, 2.0))


def test_one_image_that_differs_does_not_throw_the_limit_far_away() -> None:
    """Without that image a draw hardly varies, and a third of the draws are without it."""
    values = np.random.default_rng(0).normal(0, 0.001, 30)
    values[3] = 6.5
    low, high = bootstrap(values, np.arange(30) % 2)  # type: ignore[misc]
    spread = values.std(ddof=1) / math.sqrt(30)
    assert low == pytest.approx(values.mean() - student_t(0.975, 28) * spread, rel=0.05)
    assert high == pytest.approx(values.mean() + student_t(0.975, 28) * spread, rel=0.05)


@pytest.mark.parametrize(
    ("sizes", "at_least"), [([20, 1], 0.925), ([50, 1, 1], 0.925), ([1] * 20, 0.9), ([5, 5], 0.88)]
)
def test_thin_classes_do_not_make_the_interval_too_short(sizes: list[int], at_least: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = -2.0 + 2.0 * (labels > 0)
    truth = np.log1p(np.exp(rng.normal(centres, 2.0, (20_000, len(labels))))).mean()
    drawn = [np.log1p(np.exp(rng.normal(centres, 2.0))) for _ in range(DRAWS)]
    intervals = [bootstrap(values, labels, draws=300, seed=number) for number, values in enumerate(drawn)]
    assert at_least < covered(intervals, truth) < 0.97  # type: ignore[arg-type]


def test_the_interval_of_the_balanced_accuracy_covers_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    total, truth = np.array([100, 40, 20]), np.array([0.95, 0.85, 0.6])
    right = rng.binomial(total, truth, (20 * DRAWS, 3))
    intervals = [balanced_accuracy_interval(row, total) for row in right]
    assert covered(intervals, truth.mean()) == pytest.approx(0.95, abs=0.02)


def test_a_class_without_images_does_not_count_in_the_balanced_accuracy() -> None:
    assert balanced_accuracy_interval(np.array([9, 0]), np.array([10, 0])) == pytest.approx(wilson(9, 10))


# ------------------------------------------------------------------------------------------------- comparisons


def test_newcombes_interval_is_that_of_his_paper() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table II: e, f, g, h = 36, 12, 2, 0
    assert newcombe(both=36, gained=12, lost=2, total=50) == pytest.approx((0.0569, 0.3404), abs=5e-4)


def test_newcombes_interval_knows_how_alike_the_two_are() -> None:
    """By hand for 40 both, 6 and 4, 50 neither: the correlation, less his correction for continuity, narrows the
    interval."""
    low1, high1 = wilson(44, 100)
    low2, high2 = wilson(46, 100)
    phi = (40 * 50 - 6 * 4 - 100 / 2) / math.sqrt(44 * 56 * 46 * 54)
    down = math.sqrt((0.46 - low2) ** 2 - 2 * phi * (0.46 - low2) * (high1 - 0.44) + (high1 - 0.44) ** 2)
    up = math.sqrt((high2 - 0.46) ** 2 - 2 * phi * (high2 - 0.46) * (0.44 - low1) + (0.44 - low1) ** 2)
    assert newcombe(both=40, gained=6, lost=4, total=100) == pytest.approx((0.02 - down, 0.02 + up))
    assert down + up < 0.16  # without phi: 0.27


@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.05), (0.08, 0.03), (0.15, 0.05)])
@pytest.mark.parametrize("total", [153, 656])
def test_the_interval_of_the_difference_covers_at_the_nominal_rate(total: int, gained: float, lost: float) -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(total, [gained, lost, 0.8, max(0.0, 0.2 - gained - lost)], 4 * DRAWS)
    intervals = [newcombe(gained=g, lost=w, both=b, total=total) for g, w, b, _ in counts.tolist()]
    assert covered(intervals, gained - lost) == pytest.approx(0.95, abs=0.02)


def test_the_false_positive_rate_of_mcnemar_is_at_most_the_nominal_one() -> None:
    rng = np.random.default_rng(0)
    cries = 0
    for gained in rng.binomial(30, 0.5, 2 * DRAWS).tolist():
        first = [True] * (30 - gained) + [False] * gained
        cries += paired(first, [not right for right in first]).beyond_chance
    assert 0.02 < cries / (2 * DRAWS) < 0.05 + 0.01


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]


@pytest.mark.parametrize(
    ("gained", "lost", "total", "level"),
    [(12, 3, 153, 0.05), (8, 4, 153, 0.05), (40, 20, 100, 0.05), (15, 5, 20, 0.05), (15, 5, 20, 0.01)],
)
def test_with_so_many_images_the_exact_test_finds_the_difference_four_times_out_of_five(
    gained: int, lost: int, total: int, level: float
) -> None:
    needed = images_needed(gained=gained, lost=lost, total=total, level=level)
    assert needed is not None
    rng = np.random.default_rng(0)
    pairs = rng.multinomial(needed, [gained / total, lost / total, 1 - (gained + lost) / total], 20 * DRAWS).tolist()
    p_values = {pair: _mcnemar(*pair) for pair in {(g, w) for g, w, _ in pairs}}
    found = np.mean([p_values[g, w] < level for g, w, _ in pairs])
    assert 0.795 < found < 0.85  # 0.8 or more, less three standard errors of 20,000 draws
    assert images_needed(gained=lost, lost=gained, total=total, level=level) == needed


def test_where_no_difference_was_seen_nobody_knows_how_many_images_it_takes() -> None:
    assert images_needed(gained=4, lost=4, total=153) is None


def _mcnemar(gained: int, lost: int) -> float:
    first = [False] * gained + [True] * lost
    return paired(first, [not right for right in first]).p_value if first else 1.0


# ------------------------------------------------------------------------------------------------- repeated runs


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 4, 2.7764), (0.95, 9, 1.8331), (0.975, 30, 2.0423)],
)
def test_students_t_is_that_of_the_tables(probability: float, degrees: int, value: float) -> None:
    assert student_t(probability, degrees) == pytest.approx(value, abs=1e-4)


@pytest.mark.slow
def test_the_interval_over_seeds_covers_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_interval(row) for row in rng.normal(0.9, 0.01, (4 * DRAWS, 5)).tolist()]
    assert covered(intervals, 0.9) == pytest.approx(0.95, abs=0.02)  # type: ignore[arg-type]
    assert mean_interval([0.9]) is None


def test_runs_that_share_training_images_have_the_wider_interval_of_nadeau_and_bengio() -> None:
    """By hand for 5 folds: the variance of the mean is (1/5 + 1/4) times that of the folds and not 1/5."""
    values = [0.8, 0.85, 0.9, 0.86, 0.84]
    reach = 2.776445 * float(np.std(values, ddof=1)) * math.sqrt(1 / 5 + 1 / 4)
    assert mean_interval(values, overlap=1 / 4) == pytest.approx((0.85 - reach, 0.85 + reach), abs=1e-7)
