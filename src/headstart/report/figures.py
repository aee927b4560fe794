"""The figures of the report: each a chart with its caption, its legend, and its numbers as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from headstart.evaluation.statistics import wilson
from headstart.html import interval, percent
from headstart.model.calibration import cross_fitted
from headstart.report.charts import Line, Mark, line_chart, short
from headstart.runs.finished_run import EvaluatedImages, FinishedRun

MAX_ROWS = 60  # of the table under a curve
MAX_BINS, MIN_PER_BIN = 10, 10


@dataclass(frozen=True)
class Figure:
    """legend: kind and name of each curve; columns, rows: the numbers as a table."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def curves(run: FinishedRun) -> list[Figure]:
    """Loss, accuracy and learning rate over epochs and steps; for a linear probe the choice of its l2."""
    epochs, steps, strengths = run.epochs(), run.steps(), run.strengths()
    figures = []
    if len(epochs) > 1:
        best = Mark(run.summary.best_epoch, f"kept: epoch {run.summary.best_epoch}")
        for title, key, as_text in (("Loss", "loss", short), ("Accuracy", "accuracy", _short_percent)):
            lines = [
                _line(name, kind, epochs, "epoch", f"{kind}_{key}")
                for kind, name in (("train", "training"), ("val", "validation"))
            ]
            figures.append(_figure(title, lines, x_label="epoch", y_text=as_text, mark=best))
    if strengths:
        chosen = (run.summary.probe or {})["l2"]
        mark = Mark(chosen, f"chosen: L2 strength {chosen:.3g}")
        loss = _line("log loss", "val", strengths, "l2", "cv_loss", "cv_loss_se")
        accuracy = _line("accuracy", "val", strengths, "l2", "cv_accuracy")
        axis: dict[str, Any] = {"x_label": "probe.l2", "log_x": True, "mark": mark}
        figures += [
            _figure("Cross-validated log loss", [loss], note="Bars: one standard error.", **axis),
            _figure("Cross-validated accuracy", [accuracy], y_text=_short_percent, **axis),
        ]
    if len(steps) > 1:
        if len(epochs) <= 1:
            figures.append(
                _figure("Training loss", [_line("loss", "val", steps, "step", "loss")], x_label="step", zero=True)
            )
        figures.append(_learning_rates(steps))
    return figures


def reliability(run: FinishedRun) -> list[tuple[Figure, Mapping[str, Any]]]:
    """Confidence against accuracy, with the metrics of the summary for the same probabilities.

    Of the model, and after temperature scaling if the model file has a temperature."""
    scaled = None
    if run.info.calibration is not None:
        if run.info.calibration.fitted_on == "validation logits":  # on images that each temperature was not fitted on
            scaled = cross_fitted(run.logits, run.labels)
        else:
            scaled = run.info.calibration.probabilities(run.logits)
    return reliability_figures(run, run.summary.val, scaled, run.summary.calibration)


def reliability_figures(
    images: EvaluatedImages, val: Mapping[str, Any], scaled: np.ndarray | None, of_scaled: Mapping[str, Any]
) -> list[tuple[Figure, Mapping[str, Any]]]:
    """scaled: (n, C), the probabilities after temperature scaling; val, of_scaled: metrics before and after it."""
    num_classes = images.probabilities.shape[1]
    without = _reliability("Without temperature scaling", images.confidence, images.is_correct, num_classes)
    figures: list[tuple[Figure, Mapping[str, Any]]] = [(without, val)]
    if scaled is not None and images.info.calibration is not None:
        title = f"After temperature scaling, T = {images.info.calibration.temperature:.2f}"
        figures.append((_reliability(title, scaled.max(axis=1), images.is_correct, num_classes), of_scaled))
    return figures


def bins(confidence: np.ndarray, is_correct: np.ndarray) -> list[tuple[float, int, int]]:
    """(mean confidence, number correct, number of images) of bins with equal numbers of images, by confidence.

    confidence: (n,) float64; is_correct: (n,) bool."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(1, min(MAX_BINS, len(order) // MIN_PER_BIN)))
    return [(float(confidence[part].mean()), int(is_correct[part].sum()), len(part)) for part in parts if len(part)]


def _line(name: str, kind: str, rows: Sequence[Mapping[str, Any]], x: str, y: str, error: str = "") -> Line:
    """The values under key `y` over those under `x`, where a row has them, with bars of plus and minus `error`."""
    rows = [row for row in rows if y in row]
    band = [(row[y] - row[error], row[y] + row[error]) for row in rows] if error else []
    return Line(name, kind, [row[x] for row in rows], [row[y] for row in rows], band)


def _figure(title: str, lines: Sequence[Line], *, x_label: str, note: str = "", **options: Any) -> Figure:
    """A chart of these curves with its table. options: of line_chart."""
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    columns = [x_label, *(line.name for line in lines)]
    if lines[0].band:
        half = [(high - low) / 2 for low, high in lines[0].band]
        values.append(dict(zip(lines[0].x, half, strict=True)))
        columns.append("standard error")
    xs = sorted(set().union(*values))
    xs = xs[:: max(1, math.ceil(len(xs) / MAX_ROWS))]
    rows = [[f"{x:g}", *(f"{column[x]:.4g}" if x in column else "–" for column in values)] for x in xs]
    svg = line_chart(lines, title=f"{title} by {x_label}", x_label=x_label, **options)
    return Figure(title, svg, [(line.kind, line.name) for line in lines], columns, rows, note)


def _learning_rates(steps: Sequence[Mapping[str, Any]]) -> Figure:
    """One curve for all groups of parameters with the same rates; weight decay makes no difference here."""
    names: dict[tuple[float, ...], list[str]] = {}
    for group in steps[0]["lr"]:
        rates = tuple(line["lr"].get(group, 0.0) for line in steps)
        names.setdefault(rates, []).append(group.removesuffix("_decay").removesuffix("_no"))
    x = [line["step"] for line in steps]
    lines = [
        Line(", ".join(dict.fromkeys(groups)), ("val", "train", "plain")[min(number, 2)], x, rates)
        for number, (rates, groups) in enumerate(names.items())
    ]
    peaks = [max(line.y) for line in lines]
    log = min(peaks) > 0 and max(peaks) / min(peaks) > 10
    return _figure("Learning rate", lines, x_label="step", log_y=log, zero=not log)


def _reliability(title: str, confidence: np.ndarray, is_correct: np.ndarray, num_classes: int) -> Figure:
    """The axis of the confidence starts at 1/K: of K classes, the most probable one is at least that probable."""
    least = 1 / max(2, num_classes)
    parts = bins(confidence, is_correct)
    ends = [wilson(correct, n) for _, correct, n in parts]
    points = Line("", "points", [x for x, *_ in parts], [correct / n for _, correct, n in parts], ends)
    lines, name = [Line("", "ideal", [least, 1], [least, 1]), points], f"{title}: accuracy by confidence"
    svg = line_chart(
        lines, title=name, x_label="confidence", y_text=_short_percent, x_text=_rounded_percent, x_ends=(least, 1)
    )
    rows = [
        [percent(x), percent(correct / n), interval(limits), str(n)]
        for (x, correct, n), limits in zip(parts, ends, strict=True)
    ]
    return Figure(title, svg, [], ["mean confidence", "accuracy", "95% interval", "images"], rows)


def _short_percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _rounded_percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 1 else "100%"
