"""The exact head: scikit-learn's solution, the stated gradient, selection, weights, streaming, determinism."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from headstart.errors import InputError
from headstart.features import cross_validation, logistic_regression, nearest_neighbours
from headstart.features.bank import BankRows
from headstart.features.lbfgs import minimize
from headstart.recipe.class_weights import class_weights


def blobs(n: int, d: int, classes: int, *, seed: int = 0, spread: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Features like a trunk's: not negative, of very different scales, classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    scales, centres = rng.uniform(0.05, 3, d), rng.normal(0, spread, (classes, d))
    return (np.abs(rng.normal(1, 1, (n, d)) + centres[labels]) * scales).astype(np.float32), labels


def standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = features.astype(np.float64)
    return (wide - wide.mean(axis=0)) / wide.std(axis=0), wide.std(axis=0)


@pytest.mark.parametrize("l2", [0.3, 10.0, 300.0])
@pytest.mark.parametrize(("n", "d", "classes"), [(120, 200, 2), (400, 60, 2), (300, 40, 5), (60, 80, 4)])
def test_the_coefficients_are_those_of_scikit_learn(n, d, classes, l2) -> None:
    features, labels = blobs(n, d, classes)
    found = logistic_regression.fit(features, labels, num_classes=classes, l2=l2)
    assert found.converged
    assert found.gradient_norm <= logistic_regression.GRADIENT_NORM
    scaled, std = standardised(features)
    # with two classes scikit-learn fits one vector, the difference of our two: half the penalty
    strength = 1 / l2 if classes > 2 else 2 / l2
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(scaled, labels)
    ours = found.head.weight * std
    ours = ours if classes > 2 else ours[1:] - ours[:1]
    assert np.abs(ours - reference.coef_).max() < 1e-4
    probabilities = np.exp(found.head.logits(features))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert np.abs(probabilities - reference.predict_proba(scaled)).max() < 1e-4


def test_the_gradient_is_that_of_the_stated_objective() -> None:
    features, labels = blobs(50, 7, 3)
    weights = np.random.default_rng(1).uniform(0.5, 1.5, 50)
    weights /= weights.mean()
    l2 = 2.0
    found = logistic_regression.fit(features, labels, num_classes=3, l2=l2, weights=weights)
    mean = np.average(features.astype(np.float64), axis=0, weights=weights)
    std = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))

    def objective(weight: np.ndarray, bias: np.ndarray) -> float:
        logits = (features - mean) / std @ weight.T + bias
        logits -= logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(50), labels]
        return float((weights * losses).mean() + l2 / (2 * 50) * (weight**2).sum())

    weight, bias = found.head.weight * std, found.head.bias + found.head.weight @ mean
    at = objective(weight, bias)
    assert at == pytest.approx(found.objective, rel=1e-12)
    rng = np.random.default_rng(2)
    for _ in range(20):  # nowhere near is it smaller
        assert objective(weight + 1e-3 * rng.normal(size=weight.shape), bias + 1e-3 * rng.normal(size=3)) > at


def test_the_same_input_gives_the_same_bits() -> None:
    features, labels = blobs(200, 30, 3)
    first, second = (logistic_regression.fit(features, labels, num_classes=3, l2=1.0) for _ in range(2))
    assert np.array_equal(first.head.weight, second.head.weight)
    assert np.array_equal(first.head.bias, second.head.bias)


def test_a_constant_feature_has_no_weight() -> None:
    features, labels = blobs(100, 10, 2)
    features[:, 4] = 3.25
    found = logistic_regression.fit(features, labels, num_classes=2, l2=1.0)
    assert np.abs(found.head.weight[:, 4]).max() < 1e-12
    assert np.isfinite(found.head.weight).all()


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(odd) -> None:
    features, labels = blobs(60, 16, 3)
    features[5, 2] = odd
    with pytest.raises(InputError, match=r"\b1 of 60\b.*nan"):
        logistic_regression.fit(features, labels, num_classes=3, l2=1.0)


@pytest.mark.parametrize(("classes", "n", "d"), [(2, 90, 30), (4, 200, 40)])
def test_class_weights_and_augmented_copies_give_the_coefficients_of_scikit_learn(classes, n, d) -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(classes, n, p=[0.7] + [0.3 / (classes - 1)] * (classes - 1))
    plain = np.abs(rng.normal(1, 1, (n, d))) + rng.normal(0, 0.4, (classes, d))[labels]
    copies = 3
    features = (np.repeat(plain, copies, axis=0) + rng.normal(0, 0.1, (n * copies, d))).astype(np.float32)
    labels = np.repeat(labels, copies)
    weights = class_weights(labels, num_classes=classes)
    found = logistic_regression.fit(features, labels, num_classes=classes, l2=2.0 * copies, weights=weights)
    mean = np.average(features.astype(np.float64), axis=0, weights=weights)
    std = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    strength = 1 / (2.0 * copies) if classes > 2 else 2 / (2.0 * copies)
    reference = LogisticRegression(C=strength, tol=1e-11, max_iter=20_000, class_weight="balanced")
    reference.fit((features - mean) / std, labels)
    ours = found.head.weight * std
    ours = ours if classes > 2 else ours[1:] - ours[:1]
    assert found.converged
    assert np.abs(ours - reference.coef_).max() < 1e-5


def test_out_of_memory_maps_the_optimum_is_the_same(monkeypatch, tmp_path) -> None:
    features, labels = blobs(3000, 40, 4)
    expected = logistic_regression.fit(features, labels, num_classes=4, l2=5.0)
    order = np.random.default_rng(0).permutation(3000)
    path = tmp_path / "rows.bin"
    features[order].tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=(3000, 40))
    maps = [mapped[:1000], mapped[1000:]]
    place = np.argsort(order)
    where = np.stack([place >= 1000, np.where(place >= 1000, place - 1000, place)], axis=1).astype(np.int64)
    rows = BankRows(maps, where, width=40)
    assert np.array_equal(rows[:], features)
    monkeypatch.setattr(logistic_regression, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(logistic_regression, "_CHUNK_ROWS", 512)
    monkeypatch.setattr(logistic_regression, "_CURVATURE_ROWS", 700)
    streamed = logistic_regression.fit(
        rows, labels, num_classes=4, l2=5.0, gradient_norm=logistic_regression.GRADIENT_NORM
    )
    assert streamed.converged
    assert np.abs(streamed.head.weight - expected.head.weight).max() < 1e-5


def test_balanced_weights_count_each_class_the_same() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    weights = class_weights(labels, num_classes=2)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())


def test_balanced_weights_find_more_of_the_rare_class() -> None:
    features, labels = blobs(600, 5, 2, spread=0.15)
    keep = (labels == 0) | (np.arange(600) % 12 == 0)
    features, labels = features[keep], labels[keep]
    plain = logistic_regression.fit(features, labels, num_classes=2, l2=1.0)
    balanced = logistic_regression.fit(
        features, labels, num_classes=2, l2=1.0, weights=class_weights(labels, num_classes=2)
    )
    rare = features[labels == 1]
    recall = [(found.head.logits(rare).argmax(axis=1) == 1).mean() for found in (plain, balanced)]
    assert recall[1] > recall[0]


def test_folds_are_stratified_and_do_not_depend_on_the_order_of_the_rows() -> None:
    labels = np.array([0] * 23 + [1] * 41)
    ids = [f"image {i}" for i in range(64)]
    folds = cross_validation.stratified_folds(ids, labels, folds=5, seed=0)
    for label in (0, 1):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(0).permutation(64)
    again = cross_validation.stratified_folds([ids[i] for i in order], labels[order], folds=5, seed=0)
    assert np.array_equal(again, folds[order])
    assert not np.array_equal(folds, cross_validation.stratified_folds(ids, labels, folds=5, seed=1))


def test_augmented_copies_of_one_image_are_held_out_together() -> None:
    labels = np.repeat(np.arange(20) % 2, 3)
    ids = [f"image {i}" for i in range(20) for _ in range(3)]
    folds = cross_validation.stratified_folds(ids, labels, folds=4, seed=0).reshape(20, 3)
    assert (folds == folds[:, :1]).all()


def test_the_chosen_strength_has_the_smallest_loss() -> None:
    features, labels = blobs(150, 60, 3, spread=0.3)
    folds = cross_validation.stratified_folds([str(i) for i in range(150)], labels, folds=5, seed=0)
    best = cross_validation.cross_validate(features, labels, folds, num_classes=3)
    losses = dict(zip(best.grid, best.losses, strict=True))
    assert losses[best.l2] == min(best.losses)
    assert best.grid[0] > best.l2 > best.grid[-1]


def test_cross_validation_has_the_scores_of_fitting_each_fold() -> None:
    features, labels = blobs(90, 20, 3)
    folds = cross_validation.stratified_folds([str(i) for i in range(90)], labels, folds=3, seed=0)
    chosen = cross_validation.cross_validate(features, labels, folds, num_classes=3, grid=(30.0, 3.0))
    correct = 0
    for fold in range(3):
        held = folds == fold
        found = logistic_regression.fit(features[~held], labels[~held], num_classes=3, l2=3.0)
        correct += int((found.head.logits(features[held]).argmax(axis=1) == labels[held]).sum())
    assert chosen.accuracies[1] == pytest.approx(correct / 90, abs=0.012)  # selection stops a little earlier


def test_neighbours_vote() -> None:
    features, labels = blobs(200, 20, 2, spread=1.5)
    assert nearest_neighbours.knn_accuracy(features[:150], labels[:150], features[150:], labels[150:]) > 0.9
    shuffled = np.random.default_rng(0).permutation(labels[:150])
    assert nearest_neighbours.knn_accuracy(features[:150], shuffled, features[150:], labels[150:]) < 0.8


def test_neighbours_are_looked_for_among_so_many_rows_at_most_and_not_in_one_piece(monkeypatch) -> None:
    features, labels = blobs(3000, 20, 3, spread=1.0)
    monkeypatch.setattr(nearest_neighbours, "NEIGHBOUR_ROWS", 1000)
    pieces: list[int] = []

    class Watched:
        """Rows that are not to be taken all at once."""

        def __init__(self, rows: np.ndarray) -> None:
            self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

        def __getitem__(self, which):
            pieces.append(len(self.rows[which]))
            return self.rows[which]

    sampled = nearest_neighbours.knn_accuracy(Watched(features), labels, Watched(features), labels)
    assert sampled == nearest_neighbours.knn_accuracy(features[::3], labels[::3], features, labels)
    assert max(pieces) == 1000
    assert sum(pieces) == 1000 + 3000
    assert sampled > 0.8


def test_minimize_finds_the_minimum_of_a_badly_scaled_quadratic() -> None:
    curvature = 10.0 ** np.arange(-3, 4)
    target = np.arange(7.0)
    found = minimize(
        lambda x: (0.5 * float(curvature @ (x - target) ** 2), curvature * (x - target)),
        np.zeros(7),
        gradient_norm=1e-10,
    )
    assert found.converged
    assert np.abs(found.x - target).max() < 1e-6


def test_a_fit_that_stops_early_reports_it() -> None:
    curvature = 10.0 ** np.linspace(-3, 3, 50)
    found = minimize(
        lambda x: (0.5 * float(curvature @ x**2), curvature * x), np.ones(50), gradient_norm=1e-10, max_iterations=3
    )
    assert not found.converged
    assert found.iterations == 3
