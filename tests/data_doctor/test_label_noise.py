"""Suspected wrong labels: the counts of the paper; planted ones are found, and copies do not vouch for each other."""

import numpy as np
import pytest

from headstart.data_doctor.label_noise import confident_joint, out_of_fold, study_labels, suspects_of


def blobs(n: int = 240, *, flipped: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of three classes, labels of which some are wrong, and the indices of these."""
    rng = np.random.default_rng(0)
    truth = np.arange(n) % 3
    features = (rng.normal(0, 1, (n, 16)) + rng.normal(0, 1.5, (3, 16))[truth]).astype(np.float32)
    wrong = np.sort(rng.choice(n, flipped, replace=False))
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + 1) % 3
    return features, labels, wrong


def test_planted_wrong_labels_are_found_and_named_with_the_true_class():
    features, labels, wrong = blobs()
    study = study_labels(features, labels, [str(k) for k in range(240)], num_classes=3, folds=5, seed=0)
    found = [suspect.index for suspect in study.suspects]
    assert set(found) >= set(wrong.tolist())
    assert len(found) <= len(wrong) + 3
    right = [suspect for suspect in study.suspects if suspect.index in wrong]
    assert all(suspect.suggested == suspect.index % 3 for suspect in right)
    assert [s.margin for s in study.suspects] == sorted((s.margin for s in study.suspects), reverse=True)
    assert study.joint.sum() == pytest.approx(1)
    assert 1 - np.trace(study.joint) == pytest.approx(12 / 240, abs=0.02)


def test_correct_labels_are_not_suspected():
    features, labels, _ = blobs(flipped=0)
    study = study_labels(features, labels, [str(k) for k in range(240)], num_classes=3, folds=5, seed=0)
    assert len(study.suspects) <= 2


def test_the_joint_is_that_of_the_paper_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.7])  # of class 0
    probabilities = np.stack([p, 1 - p], axis=1)
    # thresholds: 0.6 and (0.8 + 0.7 + 0.3) / 3 = 0.6; counted: 0 0 | 1, and 1 1 | 0
    assert confident_joint(probabilities, labels).tolist() == [[2, 1], [1, 2]]
    found = suspects_of(probabilities, labels, confident_joint(probabilities, labels))
    assert [(s.index, s.given, s.suggested, round(s.margin, 6)) for s in found] == [(2, 0, 1, 0.8), (5, 1, 0, 0.4)]


def test_a_joint_of_no_confident_row_takes_the_label_at_its_word():
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1]])
    assert confident_joint(probabilities, np.array([0, 1, 0])).sum() == pytest.approx(3)


def test_copies_under_another_label_do_not_vouch_for_each_other():
    """An image and its copy carry different labels: held out together, both are judged by the others alone."""
    features, labels, _ = blobs(flipped=0)
    features = np.concatenate([features, features[:60]])
    labels = np.concatenate([labels, (labels[:60] + 1) % 3])
    owners = [str(k) for k in range(240)] + [str(k) for k in range(60)]
    together = out_of_fold(features, labels, owners, num_classes=3, folds=5, seed=0)
    assert np.allclose(together[:60], together[240:])
    apart = out_of_fold(features, labels, [str(k) for k in range(300)], num_classes=3, folds=5, seed=0)
    rows = np.arange(60)
    assert together[rows, labels[:60]].mean() > apart[rows, labels[:60]].mean()


def test_a_class_of_one_image_cannot_be_held_out():
    with pytest.raises(ValueError, match="two"):
        out_of_fold(
            np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), ["a", "b", "c", "c"], num_classes=2, folds=2, seed=0
        )
