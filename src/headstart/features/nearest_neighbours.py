"""The accuracy of nearest neighbours on features: what the features give without training. Imports numpy alone."""

import numpy as np

from headstart.features.logistic_regression import Features

NEIGHBOUR_ROWS = 20_000  # number of rows that are searched, at most
_ROWS_AT_ONCE = 256  # test rows per matrix product: 20 MB of similarities with NEIGHBOUR_ROWS


def knn_accuracy(
    features: Features, labels: np.ndarray, test_features: Features, test_labels: np.ndarray, *, k: int = 5
) -> float:
    """The share of test rows whose k most similar rows vote for the correct class; a vote weighs the cosine similarity.

    features: (n, d), labels: (n,) int, of which the rows `searched_rows(n)` are searched; test_features: (m, d),
    test_labels: (m,) int. Both are read piece by piece.
    """
    sample = searched_rows(len(labels))
    known, labels = _unit(features[sample]), labels[sample]
    k = min(k, len(labels))
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    correct = 0
    for start in range(0, len(test_labels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        similarity = _unit(test_features[rows]) @ known.T
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        votes = np.zeros((len(nearest), num_classes))
        voters = np.arange(len(nearest))[:, None]
        np.add.at(votes, (voters, labels[nearest]), np.take_along_axis(similarity, nearest, axis=1))
        correct += int((votes.argmax(axis=1) == test_labels[rows]).sum())
    return correct / len(test_labels)


def searched_rows(num_rows: int) -> slice:
    """All rows, or evenly spaced ones if there are more than NEIGHBOUR_ROWS."""
    return slice(0, num_rows, max(1, -(-num_rows // NEIGHBOUR_ROWS)))


def _unit(features: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, d) float32 of length 1."""
    wide = features.astype(np.float32)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))
