"""The functions of metrics.py as `evaluate.Metric` classes, which load nothing from a hub.

    LabelMetrics().compute(predictions=codes, references=labels, num_classes=C)
    ProbabilityMetrics().compute(predictions=probabilities, references=labels)

No command imports this module: importing `evaluate` takes seconds.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from headstart.evaluation import metrics

_CODE = datasets.Value("int32")


class LabelMetrics(evaluate.Metric):  # type: ignore[misc, unused-ignore]
    """Accuracy, balanced accuracy, macro F1, precision and recall of each class, and the confusion matrix.

    predictions, references: (n,) class indices; num_classes: C."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self.__doc__, predictions=_CODE)

    def _compute(self, predictions: Any, references: Any, num_classes: int) -> dict[str, Any]:
        counts = metrics.confusion_matrix(predictions, references, num_classes=num_classes)
        return metrics.of_counts(counts)


class ProbabilityMetrics(evaluate.Metric):  # type: ignore[misc, unused-ignore]
    """Log loss and, for more than five classes, top-5 accuracy. predictions: (n, C) probabilities; references: (n,)
    class indices."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self.__doc__, predictions=datasets.Sequence(datasets.Value("float64")))

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return metrics.of_probabilities(np.asarray(predictions), np.asarray(references))


def _info(description: str | None, *, predictions: Any) -> evaluate.MetricInfo:
    """predictions: the `datasets` feature of one prediction."""
    features = datasets.Features({"predictions": predictions, "references": _CODE})
    return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)
