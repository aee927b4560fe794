"""Predictions of a split, each sample once, and their metrics with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from headstart.data.transforms import Preprocess
from headstart.errors import Stopped
from headstart.model.calibration import CONFIDENCE, WRONGLY_FLAGGED, Calibration, cross_fitted
from headstart.runtime.signals import StopRequest


@dataclass(frozen=True)
class Predictions:
    """logits: (n, C) float32; labels: (n,) int64; features: (n, 512) float32, what the head saw, if asked for; all in the
    order of the split's samples."""

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax in float64, (n, C)."""
        logits = self.logits.astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

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
    """Run a prepared eval loader through the model, the same result in every process.

    Accelerate evens the last batch out by repeating samples; rows are put in place by sample index, so each
    counts once. head: the layer of the model whose inputs are wanted as features; the model must not be compiled then.
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
                    raise Stopped("evaluation was interrupted")
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


def describe(
    predictions: Predictions,
    classes: Sequence[str],
    *,
    measure: Callable[[np.ndarray, np.ndarray], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """All metrics with their intervals, None where nothing says how wide one is; per-class values by class name.

    measure: metrics.measure, or what runs it elsewhere.
    """
    from headstart.evaluation import statistics

    if measure is None:
        from headstart.evaluation import metrics  # imports evaluate, which takes its time

        measure = metrics.measure
    values = measure(predictions.probabilities, predictions.labels)
    order = ("n", "correct", "accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy", "loss")
    described: dict[str, Any] = {name: values[name] for name in order if name in values}
    described["accuracy_ci95"] = list(statistics.wilson(values["correct"], values["n"]))
    probabilities, labels = predictions.probabilities, predictions.labels
    counts = np.array(values["confusion_matrix"])
    described["balanced_accuracy_ci95"] = list(
        statistics.balanced_accuracy_interval(np.diag(counts), counts.sum(axis=1))
    )
    losses = statistics.log_losses(probabilities, labels)
    described["loss_ci95"] = _listed(statistics.bootstrap(losses, labels, lowest=0.0))
    brier = statistics.brier_scores(probabilities, labels)
    described["brier"] = float(brier.mean())
    described["brier_ci95"] = _listed(statistics.bootstrap(brier, labels, lowest=0.0, highest=2.0))
    described |= asdict(statistics.calibration_error(probabilities, labels))
    described["per_class"] = {
        name: {
            "precision": values["precision"][i],
            "precision_ci95": _interval(counts[i, i], counts[:, i].sum()),
            "recall": values["recall"][i],
            "recall_ci95": _interval(counts[i, i], counts[i].sum()),
            "n": int(counts[i].sum()),
        }
        for i, name in enumerate(classes)
    }
    described["confusion_matrix"] = values["confusion_matrix"]
    return described


def describe_calibration(predictions: Predictions, calibration: Calibration) -> dict[str, Any]:
    """What the model file's calibration says of the validation images that it was fitted on, or by.

    A temperature that was fitted on them is measured by cross-fitting: each tenth with that of the other nine."""
    from headstart.evaluation import statistics

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
        "loss": float(statistics.log_losses(probabilities, labels).mean()),
        "brier": float(statistics.brier_scores(probabilities, labels).mean()),
        **asdict(statistics.calibration_error(probabilities, labels)),
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


def _interval(successes: Any, total: Any) -> list[float] | None:
    """Wilson's, None of nothing."""
    from headstart.evaluation.statistics import wilson

    return _listed(wilson(int(successes), int(total))) if total else None


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def headline(values: dict[str, Any]) -> str:
    """'accuracy 88.2 % [82.1, 92.4], 135 of 153'."""
    low, high = values["accuracy_ci95"]
    return f"accuracy {values['accuracy']:.1%} [{low:.1%}, {high:.1%}], {values['correct']} of {values['n']}".replace(
        "%", " %"
    )


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
