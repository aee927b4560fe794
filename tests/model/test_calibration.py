"""Temperature, prediction sets and "none of these" keep their guarantees; shares are checked over 1,000 draws."""

import json
import math

import numpy as np
import pytest
from support.models import calibration_of

from headstart.model.calibration import Calibration, fit_temperature
from headstart.model.conformal import CONFIDENCES, fit_conformal, upper_limit
from headstart.model.open_set import SHARES, fit_open_set, reference_rows
from headstart.model.softmax import log_softmax

DRAWS = 1000


def draw_logits(rng: np.random.Generator, shape: tuple[int, ...], *, num_classes: int, margin: float = 1.5) -> tuple:
    """Logits (*shape, C) whose softmax is the truth, and labels drawn from it."""
    logits = rng.normal(0, margin, (*shape, num_classes))
    uniform = rng.gumbel(size=logits.shape)
    return logits, (logits + uniform).argmax(axis=-1)  # Gumbel-max: exactly softmax(logits)


# ------------------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize(("truth", "num_classes"), [(0.5, 2), (2.0, 2), (2.0, 5), (5.0, 10)])
def test_the_temperature_that_made_the_labels_is_found(truth: float, num_classes: int) -> None:
    logits, labels = draw_logits(np.random.default_rng(0), (40_000,), num_classes=num_classes)
    assert fit_temperature(logits * truth, labels) == pytest.approx(truth, rel=0.03)


def test_the_temperature_is_where_the_loss_is_smallest() -> None:
    rng = np.random.default_rng(1)
    logits, labels = draw_logits(rng, (150,), num_classes=4)
    found = fit_temperature(3 * logits, labels)

    def loss(temperature: float) -> float:
        right = log_softmax(3 * logits / temperature)[np.arange(150), labels]
        return -right.sum() + math.log(temperature) ** 2 / 2

    losses = {temperature: loss(temperature) for temperature in (found * 0.999, found, found * 1.001)}
    assert min(losses, key=losses.__getitem__) == found


def test_a_model_without_errors_does_not_get_infinite_confidence() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (100, 3))
    labels = logits.argmax(axis=1)
    temperature = fit_temperature(logits, labels)
    top = np.exp(log_softmax(logits / temperature)).max(axis=1)
    assert 0.97 < top.mean() < 1 - 1e-4
    assert fit_temperature(logits * 1e4, labels) < 100 * 1.001


def test_probabilities_are_those_of_the_logits_divided_by_the_temperature() -> None:
    logits = np.array([[1.7, 0.0, -3.4], [0.0, 0.0, 0.0]])
    expected = np.exp([[1.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    assert calibration_of().temperature == 1.7
    assert calibration_of().probabilities(logits) == pytest.approx(expected / expected.sum(axis=1, keepdims=True))


def test_probabilities_after_the_temperature_are_calibrated_over_1000_draws() -> None:
    """Of 153 images each, an overconfident model (logits times three): confidence and accuracy on new images differ by
    less than two points on average and in each fifth of the confidence; before, by more than ten."""
    rng = np.random.default_rng(0)
    logits, labels = draw_logits(rng, (DRAWS, 153), num_classes=3)
    new_logits, new_labels = draw_logits(rng, (DRAWS, 100), num_classes=3)
    temperatures = np.array([fit_temperature(3 * a, b) for a, b in zip(logits, labels, strict=True)])

    def sure(divided_by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities = np.exp(log_softmax((3 * new_logits / divided_by[:, None, None]).reshape(-1, 3)))
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == new_labels.reshape(-1)

    confidence, right = sure(temperatures)
    assert abs(confidence.mean() - right.mean()) < 0.02
    edges = np.quantile(confidence, [0.2, 0.4, 0.6, 0.8])
    for part in range(5):
        inside = np.digitize(confidence, edges) == part
        assert abs(confidence[inside].mean() - right[inside].mean()) < 0.02
    confidence, right = sure(np.ones(DRAWS))
    assert confidence.mean() - right.mean() > 0.1


# ------------------------------------------------------------------------------------------------- sets of classes


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("n", [153, pytest.param(656, marks=pytest.mark.slow)])
def test_prediction_sets_have_the_promised_coverage_over_1000_draws(n: int, confidence: float) -> None:
    """A hard task (about 40 % wrong) and a very overconfident model: the guarantee needs exchangeability only."""
    rng = np.random.default_rng(0)
    logits, labels = draw_logits(rng, (DRAWS, n), num_classes=5)
    new_logits, new_labels = draw_logits(rng, (DRAWS, 50), num_classes=5)
    covered = []
    for draw in range(DRAWS):
        sets = fit_conformal(4 * logits[draw], labels[draw], exact=True).sets(
            4 * new_logits[draw], confidence=confidence
        )
        covered.append(sets[np.arange(50), new_labels[draw]].mean())
    assert abs(np.mean(covered) - confidence) < 0.01


def test_a_model_better_than_the_confidence_has_no_empty_set() -> None:
    rng = np.random.default_rng(0)
    logits, labels = draw_logits(rng, (20_000,), num_classes=4, margin=12)
    accuracy = (logits.argmax(axis=1) == labels).mean()
    sets = fit_conformal(logits[:10_000], labels[:10_000], exact=True).sets(logits[10_000:])
    assert accuracy > 0.92
    assert (sets.sum(axis=1) == 1).all()
    assert sets[np.arange(10_000), labels[10_000:]].mean() == pytest.approx(accuracy, abs=0.01)


def test_with_too_few_images_the_set_holds_all_classes() -> None:
    logits, labels = draw_logits(np.random.default_rng(0), (30,), num_classes=3)
    conformal = fit_conformal(logits, labels, exact=True)
    assert conformal.limits[0.99] is None
    assert conformal.limits[0.9] is not None
    assert conformal.sets(logits, confidence=0.99).all()


def test_a_confidence_that_is_not_stored_is_refused() -> None:
    logits, labels = draw_logits(np.random.default_rng(0), (30,), num_classes=3)
    with pytest.raises(ValueError, match=r"0\.85.*0\.8, 0\.9"):
        fit_conformal(logits, labels, exact=True).sets(logits, confidence=0.85)


def test_the_limit_is_the_order_statistic_of_the_proof() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))  # n = 19: 0.05 * 20 = 1 may exceed
    assert upper_limit(scores, 0.05) == 19.0
    assert upper_limit(scores, 0.1) == 18.0
    assert upper_limit(scores, 0.04) is None


# ------------------------------------------------------------------------------------------------- none of these


def draw_features(rng: np.random.Generator, n: int, *, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, 3, n)
    return np.abs(rng.normal(0, 1, (n, width)) + 2 * np.eye(3, width)[labels] + 1), labels


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [True, False])
def test_images_of_the_classes_are_flagged_at_the_promised_rate_over_1000_draws(held_out: bool) -> None:
    rng = np.random.default_rng(0)
    flagged: dict[float, list[float]] = {share: [] for share in SHARES}
    for _ in range(DRAWS):
        features, labels = draw_features(rng, 100)
        others = draw_features(rng, 80) if held_out else None
        open_set = fit_open_set(features, labels, others=others)
        assert open_set is not None
        new = draw_features(rng, 20)[0]
        for share in SHARES:
            flagged[share].append(open_set.is_none_of_these(new, wrongly_flagged=share).mean())
    for share in SHARES:
        # 100 images allow for multiples of 1 / 101; without a held-out reference one image more to be near to
        assert -0.012 < np.mean(flagged[share]) - share < 0.005, share


def test_the_distance_is_that_to_the_tenth_nearest_and_never_to_itself() -> None:
    rng = np.random.default_rng(0)
    features, labels = draw_features(rng, 60)
    open_set = fit_open_set(features, labels)
    assert open_set is not None
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    by_hand = np.sort(pairs, axis=1)[:, 10]  # place 0 is the image itself
    place = math.ceil(61 * 0.9) - 1
    assert open_set.limits[0.1] == pytest.approx(np.sort(by_hand)[place], abs=1e-6)
    new = draw_features(rng, 5)[0]
    far = np.linalg.norm((new / np.linalg.norm(new, axis=1, keepdims=True))[:, None] - unit[None], axis=2)
    assert open_set.distance(new) == pytest.approx(np.sort(far, axis=1)[:, 9], abs=1e-6)


def test_images_unlike_all_classes_are_flagged() -> None:
    rng = np.random.default_rng(0)
    features, labels = draw_features(rng, 200)
    open_set = fit_open_set(features, labels)
    assert open_set is not None
    other = np.abs(rng.normal(0, 1, (50, 20)) + 6 * np.eye(20)[15])
    assert open_set.is_none_of_these(other).all()


def test_a_large_reference_is_reduced_evenly_over_the_classes() -> None:
    rng = np.random.default_rng(0)
    features, labels = draw_features(rng, 5000)
    open_set = fit_open_set(features, labels)
    assert open_set is not None
    assert 900 <= len(open_set.reference) <= 1000
    new = draw_features(rng, 4000)[0]
    assert open_set.is_none_of_these(new).mean() == pytest.approx(0.05, abs=0.012)


def test_of_many_images_every_class_keeps_its_share() -> None:
    labels = np.arange(5000) % 5  # every fifth row would be of one class
    kept = reference_rows(labels, seed=0)
    assert len(kept) == 1000
    assert np.bincount(labels[kept]).tolist() == [200] * 5
    assert not np.array_equal(kept, reference_rows(labels, seed=1))


def test_classes_of_one_image_have_no_neighbours() -> None:
    assert fit_open_set(np.eye(3), np.arange(3)) is None


# ------------------------------------------------------------------------------------------------- the file


def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    logits, labels = draw_logits(rng, (60,), num_classes=3)
    features, _ = draw_features(rng, 60)
    return Calibration(
        temperature=fit_temperature(logits, labels),
        fitted_on="validation logits",
        n=60,
        conformal=fit_conformal(logits, labels, exact=False),
        open_set=fit_open_set(features, labels),
    )


def test_what_is_written_is_read_back_to_the_bit() -> None:
    before = calibration()
    text = json.dumps(before.to_json(), allow_nan=False)
    after = Calibration.from_json(json.loads(text))
    rng = np.random.default_rng(5)
    logits, features = rng.normal(size=(7, 3)), rng.normal(size=(7, 20))
    assert (after.temperature, after.fitted_on, after.n, after.conformal) == (
        before.temperature,
        before.fitted_on,
        before.n,
        before.conformal,
    )
    assert np.array_equal(after.probabilities(logits), before.probabilities(logits))
    assert np.array_equal(after.prediction_sets(logits, confidence=0.8), before.prediction_sets(logits, confidence=0.8))
    distances, expected = after.distance(features), before.distance(features)
    assert distances is not None
    assert np.array_equal(distances, expected)
    assert np.array_equal(after.is_none_of_these(features), before.is_none_of_these(features))


def test_probabilities_sum_to_one_and_keep_their_order() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, 4)).astype(np.float32)
    probabilities = calibration().probabilities(logits)
    assert probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert np.array_equal(probabilities.argsort(axis=1), logits.argsort(axis=1))


def test_without_reference_features_none_of_these_is_unknown() -> None:
    whole = calibration()
    bare = Calibration(whole.temperature, whole.fitted_on, whole.n, whole.conformal, None)
    assert bare.distance(np.ones((2, 20))) is None
    assert Calibration.from_json(bare.to_json()).is_none_of_these(np.ones((2, 20))) is None
