"""The training loss: cross-entropy, with class weights or logit adjustment for rare classes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from headstart.config import OptimConfig
from headstart.recipe.class_weights import class_weights


@dataclass(frozen=True)
class TrainingLoss:
    """The mean over the images of  weights[label] * cross-entropy(logits + offsets, label).

    weights: (C,) float32 with mean 1 over the training images, or None for ones; offsets: (C,) float32, or None.
    The mean divides by the number of images and not by the sum of their weights: that sum differs between the parts of
    a batch, so the mean of the parts would not be the mean of the batch.
    """

    label_smoothing: float = 0.0
    weights: torch.Tensor | None = None
    offsets: torch.Tensor | None = None

    @staticmethod
    def of(optim: OptimConfig, labels: np.ndarray, *, num_classes: int, device: torch.device) -> "TrainingLoss":
        """labels: (n,) int, of all training images; each class occurs."""
        weights = offsets = None
        if optim.class_weights == "balanced":
            by_class = np.ones(num_classes)
            by_class[labels] = class_weights(labels, num_classes=num_classes)
            weights = torch.from_numpy(by_class).float().to(device)
        if optim.logit_adjustment:
            offsets = torch.from_numpy(logit_offsets(optim, labels, num_classes=num_classes)).float().to(device)
        return TrainingLoss(optim.label_smoothing, weights, offsets)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean of a batch, or of a part of it. logits: (n, C) float; labels: (n,) int64 -> scalar."""
        if self.offsets is not None:
            logits = logits + self.offsets
        if self.weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        return (losses * self.weights[labels]).mean()


def logit_offsets(optim: OptimConfig, labels: np.ndarray, *, num_classes: int) -> np.ndarray:
    """(C,) float64: optim.logit_adjustment * log(share of the class among the training images), which is added to the
    logits in training and not in prediction (Menon et al. 2021, the logit-adjusted loss)."""
    counts = np.bincount(labels, minlength=num_classes)
    return np.asarray(optim.logit_adjustment * np.log(counts / len(labels)))
