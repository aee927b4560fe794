"""A head that was fitted on cached features, and its predictions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.evaluation.predictions import Predictions
from headstart.features import logistic_regression
from headstart.features.logistic_regression import Head
from headstart.features.training_set import BankFeatures


@dataclass(frozen=True)
class FittedHead:
    """details: how it was fitted, for the summary; lines: of metrics.jsonl; chosen_on_val: whether the validation
    images chose among several heads; out_of_fold: logits and labels of training images, by heads that were not
    fitted on them."""

    head: Head
    details: dict[str, Any]
    lines: list[dict[str, Any]]
    best_epoch: int = 1
    epochs: int = 1
    chosen_on_val: bool = False
    out_of_fold: tuple[np.ndarray, np.ndarray] | None = None

    def __str__(self) -> str:
        if self.details["solver"] == "lbfgs":
            return f"l2 {self.details['l2']:.3g}, converged (gradient {self.details['gradient_norm']:.0e})"
        if self.chosen_on_val:
            return f"epoch {self.best_epoch} of {self.epochs}"
        return f"after {self.details['steps']} steps"


def predict_val(head: Head, features: BankFeatures) -> Predictions:
    """The validation images; logits are computed in float64 and rounded to float32."""
    rows = features.val[:]
    return Predictions(head_logits(head, rows), features.val_labels, rows)


def head_logits(head: Head, features: logistic_regression.Features) -> np.ndarray:
    """(n, C) float32; inf where a head diverged, so that its loss is not finite, which is an error."""
    with np.errstate(over="ignore"):
        return head.logits(features).astype(np.float32)
