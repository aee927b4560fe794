"""Predictions for a split, each image once, and their metrics with confidence intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from headstart.data.transforms import Preprocess
from headstart.errors import Stopped
from headstart.evaluation import metrics, statistics
from headstart.model.calibration import Calibration, cross_fitted
from headstart.model.conformal import CONFIDENCE
from headstart.model.open_set import WRONGLY_FLAGGED
from headstart.model.softmax import softmax
from headstart.runtime.signals import StopRequest


@dataclass(frozen=True)
class Predictions:
    """logits: (n, C) float32; labels: (n,) int64; features: (n, d) float32, the inputs of the head, if requested;
    all in the order of the split's samples."""

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax in float64, (n, C)."""
        return softmax(self.logits)

    @property
    def is_correct(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray(self.logits.argmax(axis=1) == self.labels)

    @property
    def correct(self) -> int:
        return int(self.is_correct.sum())


def collect(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loader: Any,
    spec: Preprocess,
    *,
    num_samples: int,
    stop: StopRequest,
    channels_last: bool,
    head: torch.nn.Module | None = None,
) -> Predictions:
    """Run a prepared evaluation loader through the model; every process returns the same result.

    Accelerate repeats samples to fill the last batch. Rows are stored by sample index, so each sample counts once.
    head: the layer of the model whose inputs are returned as features; the model must not be compiled then.
    Raises Stopped within one batch of a signal.
    """
    model.eval()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    parts: list[tuple[torch.Tensor, ...]] = []
    seen: list[torch.Tensor] = []
    hook = None if head is None else head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    try:
        with torch.inference_mode():
            for batch in loader:
                pixels = spec.normalize(batch["pixels"].contiguous(memory_format=layout))
                parts.append((batch["index"], batch["label"], model(pixels).float(), *seen))
                seen.clear()
                if stop.agreed(accelerator):
                    raise Stopped("evaluation was interrupted", signal_name=stop.signal_name)
            index, labels, *columns = (accelerator.gather(torch.cat(column)) for column in zip(*parts, strict=True))
    finally:
        if hook is not None:
            hook.remove()
    rows = index.cpu().numpy()
    all_labels = np.full(num_samples, -1, dtype=np.int64)
    all_labels[rows] = labels.cpu().numpy()
    assert (all_labels >= 0).all(), "a sample was not evaluated"
    tables = []
    for column in columns:
        table = np.empty((num_samples, column.shape[1]), dtype=np.float32)
        table[rows] = column.cpu().numpy()
        tables.append(table)
    return Predictions(tables[0], all_labels, tables[1] if head is not None else None)


def describe(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """All metrics with their 95% intervals, which are None where the data do not determine one; `per_class` by class
    name."""
    probabilities, labels = predictions.probabilities, predictions.labels
    values = metrics.compute(probabilities, labels)
    precision, recall = values.pop("precision"), values.pop("recall")
    confusion = values.pop("confusion_matrix")
    counts = np.array(confusion)
    correct, predicted, actual = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    brier = metrics.brier_scores(probabilities, labels)
    return {
        **values,
        "accuracy_ci95": statistics.wilson(values["correct"], values["n"]),
        "balanced_accuracy_ci95": statistics.balanced_accuracy_interval(correct, actual),
        "loss_ci95": statistics.bootstrap(metrics.log_losses(probabilities, labels), labels, lowest=0.0),
        "brier": float(brier.mean()),
        "brier_ci95": statistics.bootstrap(brier, labels, lowest=0.0, highest=2.0),
        **asdict(metrics.calibration_error(probabilities, labels)),
        "per_class": {
            name: {
                "precision": precision[i],
                "precision_ci95": _wilson(correct[i], predicted[i]),
                "recall": recall[i],
                "recall_ci95": _wilson(correct[i], actual[i]),
                "n": int(actual[i]),
            }
            for i, name in enumerate(classes)
        },
        "confusion_matrix": confusion,
    }


def describe_calibration(predictions: Predictions, calibration: Calibration) -> dict[str, Any]:
    """Evaluate the calibration of the model file on the validation images.

    A temperature that was fitted on these images is evaluated by cross-fitting: each tenth of the images with the
    temperature of the other nine."""
    logits, labels = predictions.logits, predictions.labels
    if calibration.fitted_on == "validation logits":
        probabilities = cross_fitted(logits, labels)
    else:
        probabilities = calibration.probabilities(logits)
    sizes = calibration.prediction_sets(logits).sum(axis=1)
    described: dict[str, Any] = {
        "temperature": calibration.temperature,
        "fitted_on": calibration.fitted_on,
        "n": calibration.n,
        "loss": float(metrics.log_losses(probabilities, labels).mean()),
        "brier": float(metrics.brier_scores(probabilities, labels).mean()),
        **asdict(metrics.calibration_error(probabilities, labels)),
        "prediction_sets": {
            "confidence": CONFIDENCE,
            "exact": calibration.conformal.exact,
            "mean_size": float(sizes.mean()),
            "of_one_class": int((sizes == 1).sum()),
            "n": calibration.conformal.n,
        },
    }
    open_set = calibration.open_set
    if open_set is not None:
        described["none_of_these"] = {
            "wrongly_flagged": WRONGLY_FLAGGED,
            "distance": open_set.limits[WRONGLY_FLAGGED],
            "reference_images": len(open_set.reference),
            "n": open_set.n,
        }
    return described


def _wilson(successes: int, total: int) -> tuple[float, float] | None:
    return statistics.wilson(int(successes), int(total)) if total else None


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple
