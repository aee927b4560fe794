"""The charts of the page with their captions, and their numbers as tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from headstart.model.calibration import cross_fitted
from headstart.report.charts import Line, Mark, line_chart, reliability_chart
from headstart.report.measures import Bin, bins
from headstart.runs.finished_run import RunFacts

MAX_ROWS = 60  # of the table under a curve


@dataclass(frozen=True)
class Figure:
    """A chart, its caption, the names of its curves by kind, and its numbers as a table."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def curves(facts: RunFacts) -> list[Figure]:
    epochs, steps, strengths = facts.epochs(), facts.steps(), facts.strengths()
    figures = []
    if len(epochs) > 1:
        best = Mark(facts.summary["best_epoch"], f"kept: epoch {facts.summary['best_epoch']}")
        figures += [
            _epoch_figure(epochs, "Loss", "loss", lambda value: f"{value:.3g}", best),
            _epoch_figure(epochs, "Accuracy", "accuracy", lambda value: f"{100 * value:.3g} %", best),
        ]
    if strengths:
        figures += _choice_figures(strengths, facts)
    if len(steps) > 1:
        x = [float(line["step"]) for line in steps]
        if len(epochs) <= 1:
            figures.append(_step_figure("Training loss", [("loss", [line["loss"] for line in steps])], x))
        names = list(steps[0]["lr"])
        rates = [(name, [line["lr"].get(name, 0.0) for line in steps]) for name in names]
        figures.append(_step_figure("Learning rate", _distinct(rates), x))
    return figures


def _distinct(curves: list[tuple[str, list[float]]]) -> list[tuple[str, list[float]]]:
    """Curves that are the same are drawn once, under all their names; whether weights decay makes no difference here."""
    found: dict[tuple[float, ...], list[str]] = {}
    for name, values in curves:
        found.setdefault(tuple(values), []).append(name.removesuffix("_decay").removesuffix("_no"))
    return [(", ".join(dict.fromkeys(names)), list(values)) for values, names in found.items()]


def _epoch_figure(
    epochs: Sequence[Mapping[str, Any]], title: str, key: str, as_text: Callable[[float], str], best: Mark
) -> Figure:
    kinds = (("train", "training"), ("val", "validation"))
    lines = []
    for kind, name in kinds:
        rows = [row for row in epochs if f"{kind}_{key}" in row]
        lines.append(Line(name, kind, [row["epoch"] for row in rows], [row[f"{kind}_{key}"] for row in rows]))
    step = max(1, math.ceil(len(epochs) / MAX_ROWS))
    table = [
        [str(row["epoch"]), *(f"{row[f'{kind}_{key}']:.4f}" if f"{kind}_{key}" in row else "–" for kind, _ in kinds)]
        for row in epochs[::step]
    ]
    return Figure(
        title,
        line_chart(lines, title=f"{title} of training and validation over the epochs", x_label="epoch", as_text=as_text, mark=best),
        list(kinds),
        ["epoch", "training", "validation"],
        table,
    )  # fmt: skip


def _step_figure(title: str, curves: Sequence[tuple[str, list[float]]], x: list[float]) -> Figure:
    kinds = ["val", "train", "plain", "plain"]
    lines = [Line(name, kinds[min(i, 3)], x, values) for i, (name, values) in enumerate(curves)]
    peaks = [max(values) for _, values in curves]
    spread = min(peaks) > 0 and max(peaks) / min(peaks) > 10
    every = max(1, math.ceil(len(x) / MAX_ROWS))
    table = [[f"{x[i]:g}", *(f"{values[i]:.4g}" for _, values in curves)] for i in range(0, len(x), every)]
    svg = line_chart(lines, title=f"{title} over the steps", x_label="step", as_text=lambda value: f"{value:.3g}",
                     log_y=spread, zero=not spread)  # fmt: skip
    return Figure(
        title, svg, [(line.kind, line.name) for line in lines], ["step", *(name for name, _ in curves)], table
    )


def _choice_figures(strengths: Sequence[Mapping[str, Any]], facts: RunFacts) -> list[Figure]:
    x = [row["l2"] for row in strengths]
    chosen = facts.summary["probe"]["l2"]
    mark = Mark(chosen, f"chosen: L2 strength {chosen:.3g}")
    losses, errors = [row["cv_loss"] for row in strengths], [row["cv_loss_se"] for row in strengths]
    band = [(loss - error, loss + error) for loss, error in zip(losses, errors, strict=True)]
    columns = ["probe.l2", "log loss", "standard error", "accuracy"]
    table = [
        [f"{row['l2']:.3g}", f"{row['cv_loss']:.4f}", f"{row['cv_loss_se']:.4f}", percent(row["cv_accuracy"])]
        for row in strengths
    ]
    return [
        Figure(
            "Cross-validated log loss",
            line_chart([Line("log loss", "val", x, losses, band)], title="Cross-validated log loss over the strength of regularisation",
                       x_label="probe.l2", as_text=lambda value: f"{value:.3g}", log_x=True, mark=mark),
            [], columns, table, "Bars: one standard error.",
        ),
        Figure(
            "Cross-validated accuracy",
            line_chart([Line("accuracy", "val", x, [row["cv_accuracy"] for row in strengths])],
                       title="Cross-validated accuracy over the strength of regularisation", x_label="probe.l2",
                       as_text=lambda value: f"{100 * value:.3g} %", log_x=True, mark=mark),
            [], columns, table,
        ),
    ]  # fmt: skip


def reliability(facts: RunFacts) -> list[Figure]:
    """Before temperature scaling, and after it if the model file knows a temperature."""
    figures = [
        _reliability_figure("As the network answers", bins(facts.confidence, facts.is_correct), facts.summary["val"])
    ]
    calibration = facts.info.calibration
    if calibration is None:
        return figures
    logits = facts.logits
    if calibration.fitted_on == "validation logits":  # on images that it was not fitted on, as the summary measures it
        scaled = cross_fitted(logits, facts.labels)
    else:
        scaled = calibration.probabilities(logits)
    title = f"After temperature scaling, T = {calibration.temperature:.2f}"
    parts = bins(scaled.max(axis=1), facts.is_correct)
    return [*figures, _reliability_figure(title, parts, facts.summary.get("calibration", {}))]


def _reliability_figure(title: str, parts: Sequence[Bin], measured: Mapping[str, Any]) -> Figure:
    """measured: what the summary says of these probabilities."""
    table = [
        [
            percent(part.confidence),
            percent(part.is_correct.value),
            interval(part.is_correct.ci95),
            str(part.is_correct.n),
        ]
        for part in parts
    ]
    note = ""
    if measured.get("ece") is not None:
        chance = measured.get("ece_by_chance95")
        note = f"Calibration error {percent(measured['ece'])}" + (
            "."
            if chance is None
            else f"; a network whose confidence is right would stay below {percent(chance)} on so many images, 95 times of 100."
        )
        note += f" Log loss {_with_ends(measured, 'loss')}, Brier score {_with_ends(measured, 'brier')}."
    return Figure(
        title,
        reliability_chart(parts, title=f"{title}: share of right answers by confidence"),
        [],
        ["mean confidence", "right", "95 % interval", "images"],
        table,
        note,
    )


def _with_ends(measured: Mapping[str, Any], name: str) -> str:
    """'0.465 (0.361 to 0.599)', with the 95 % interval if there is one."""
    ends = measured.get(f"{name}_ci95")
    return f"{measured[name]:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def percent(share: float | None, digits: int = 1) -> str:
    """'91.8 %' with a space that does not break; a dash for nothing."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\u00a0%"


def interval(ends: Sequence[float]) -> str:
    """'86.4 to 95.2 %'."""
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}\u00a0%"
