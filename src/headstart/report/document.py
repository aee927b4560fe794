"""From the facts of a run to the page: what stands in which section, in words."""

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup, escape

from headstart.html import environment
from headstart.model.calibration import WRONGLY_FLAGGED
from headstart.report.figures import curves, interval, percent, reliability
from headstart.report.gallery import MAX_FINDINGS, Gallery
from headstart.report.measures import ClassRow, confusions, per_class
from headstart.runs.finished_run import RunFacts

MAX_MATRIX = 24  # classes that a table of all confusions can hold on a screen
MAX_CLASSES = 1000  # rows of the table of classes
MAX_CONFUSIONS = 12
DOWNSCALED = 32  # pixels of the image along the side of a cell of the last stage
STRATEGIES = {
    "fine_tune": "every layer fine-tuned",
    "frozen_head": "a new head on a frozen backbone",
    "probe_then_tune": "the exact head first, then every layer fine-tuned",
}


def render(facts: RunFacts, gallery: Gallery) -> str:
    """The whole page as HTML. gallery: the images that are shown, or why there are none."""
    confusion = np.array(facts.summary["val"]["confusion_matrix"], dtype=np.int64)
    rows = per_class(confusion, facts.classes, facts.trained_on)
    template = environment()
    template.filters |= {"percent": percent, "interval": interval, "plain": plain, "breakable": breakable}
    return template.get_template("report.html").render(
        name=facts.path.resolve().name,
        shell_name=shlex.quote(facts.path.resolve().name),
        python_name=repr(facts.path.resolve().name),
        classes=facts.classes,
        subject=subject(facts.classes),
        strategy=STRATEGIES[facts.info.strategy],
        weights=facts.info.weights,
        val=facts.summary["val"],
        baseline=_baseline(rows),
        chosen_on_val=facts.chosen_on_val,
        tiles=_tiles(facts),
        curves=curves(facts),
        matrix=_matrix(confusion) if len(facts.classes) <= MAX_MATRIX else None,
        confusions=confusions(confusion, facts.classes, limit=MAX_CONFUSIONS) if len(facts.classes) > 2 else [],
        rows=rows[:MAX_CLASSES],
        more_rows=max(0, len(rows) - MAX_CLASSES),
        reliability=reliability(facts),
        calibration=_calibration(facts),
        gallery=gallery,
        cells=math.ceil(facts.info.preprocess.image_size / DOWNSCALED),
        doctor=_doctor(facts),
        splits=_splits(facts),
        data=facts.config.get("data", {}),
        skipped=facts.summary.get("skipped", []),
        manifest_sha256=facts.info.manifest_sha256,
        changed=facts.changed_keys(),
        config=yaml.safe_dump(dict(facts.config), sort_keys=False, allow_unicode=True),
        timings=_timings(facts),
        environment=_environment(facts),
        versions=facts.summary["versions"],
        spec=facts.info.preprocess,
    )


def plain(value: Any) -> str:
    """A value of the configuration or a measurement, as short as it is exact enough to read."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def breakable(key: str) -> Markup:
    """A key of the configuration that may go on in the next line behind a point or an underscore."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(key))))


def subject(classes: Sequence[str]) -> str:
    """'ants or bees', or how many classes there are."""
    if len(classes) > 4:
        return f"{len(classes)} classes"
    return " or ".join([", ".join(classes[:-1]), classes[-1]]) if len(classes) > 1 else classes[0]


def duration(seconds: float) -> str:
    """'8.3 s', '3 min 42 s', '1 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _baseline(rows: Sequence[ClassRow]) -> dict[str, Any]:
    """What always answering the most frequent class of the training images would score."""
    favourite = max(rows, key=lambda row: row.trained_on)
    total = sum(row.recall.n for row in rows)
    return {"name": favourite.name, "share": favourite.recall.n / total}


def _tiles(facts: RunFacts) -> list[tuple[str, str, str, str]]:
    """(what, value, 95 % interval or what chance makes of it, what it means)."""
    val, summary = facts.summary["val"], facts.summary
    balanced, loss = val.get("balanced_accuracy_ci95"), val.get("loss_ci95")
    tiles = [
        (
            "Log loss",
            f"{val['loss']:.3f}",
            f"{loss[0]:.3f} to {loss[1]:.3f}" if loss else "",
            f"guessing: {math.log(len(facts.classes)):.3f}",
        ),
        (
            "Balanced accuracy",
            percent(val["balanced_accuracy"]),
            interval(balanced) if balanced else "",
            "every class counts the same",
        ),
        ("Macro F1", f"{val['macro_f1']:.3f}", "", "mean over the classes, best is 1"),
    ]
    if "top5_accuracy" in val and len(facts.classes) > 5:
        tiles.append(("Top 5", percent(val["top5_accuracy"]), "", "the right class among five answers"))
    if val.get("ece") is not None:
        chance = val.get("ece_by_chance95")
        by_chance = "" if chance is None else f"up to {percent(chance)} by chance"
        tiles.append(("Calibration error", percent(val["ece"]), by_chance, "confidence against accuracy"))
    tiles.append(("Trained in", duration(summary["wall_s"]), "", f"on {summary['world_size']} x {summary['device']}"))
    return tiles


def _matrix(confusion: np.ndarray) -> list[list[dict[str, Any]]]:
    """Rows of cells: count, share of the row's class, and the colour behind it."""
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    rates = confusion / totals
    return [
        [
            {
                "count": int(confusion[i, j]),
                "rate": float(rates[i, j]),
                "right": i == j,
                # one hue for both themes, thin enough that the letters keep their contrast
                "colour": f"rgb({'46 160 67' if i == j else '248 81 73'} / {0.42 * rates[i, j] ** 0.7:.2f})",
            }
            for j in range(len(confusion))
        ]
        for i in range(len(confusion))
    ]


def _calibration(facts: RunFacts) -> list[str]:
    """What the model file promises beyond its best guess, in sentences."""
    told = facts.summary.get("calibration")
    if facts.info.calibration is None or told is None:
        return []
    sets = told["prediction_sets"]
    said = [
        f"The temperature was fitted on the {told['fitted_on']} of {told['n']} images"
        + (
            ", and is measured here tenth by tenth, each with that of the other nine."
            if told["fitted_on"] == "validation logits"
            else "."
        ),
        f"A prediction can be a set of classes that holds the right one {100 * sets['confidence']:g} times of 100: here "
        f"{sets['mean_size']:.2f} classes on average, a single one for {sets['of_one_class']} of {sets['n']} images"
        + ("." if sets["exact"] else "; the same images chose the epoch, so that this is approximate."),
    ]
    open_set = facts.info.calibration.open_set
    if open_set is None:
        return said
    if open_set.limits[WRONGLY_FLAGGED] is None:
        said.append(
            f"{open_set.n} validation images are too few to say how unlike them an image has to be to be none of the classes, so none is flagged as that."
        )
    else:
        said.append(
            f"An image that is unlike all {'training' if open_set.held_out else 'validation'} images can be flagged as none of the classes, at the "
            f"cost of {100 * WRONGLY_FLAGGED:g} of 100 good images that are flagged too."
        )
    return said


def _doctor(facts: RunFacts) -> dict[str, Any] | None:
    """Leaks and suspected labels of a report by `headstart data check`, and how much else it found."""
    if facts.doctor is None:
        return None
    from headstart.data_doctor.findings import KINDS, number_of
    from headstart.wording import shown

    told = ("duplicate_across_splits", "near_duplicate_across_splits", "suspected_label")
    findings = facts.doctor["findings"]
    sections = []
    for kind in told:
        ours = [finding for finding in findings if finding["kind"] == kind]
        sections.append(
            {
                "title": KINDS[kind].title,
                "counted": number_of(kind, len(ours)),
                "what_to_do": KINDS[kind].what_to_do,
                "entries": [
                    (shown(one["message"]), [shown(path) for path in one["paths"][:6]]) for one in ours[:MAX_FINDINGS]
                ],
                "more": max(0, len(ours) - MAX_FINDINGS),
            }
        )
    others = [(KINDS[kind].title, number_of(kind, count)) for kind, count in facts.doctor["counts"].items()
              if kind not in told and kind in KINDS]  # fmt: skip
    return {"root": shown(str(facts.doctor["root"])), "sections": sections, "others": others}


def _splits(facts: RunFacts) -> list[tuple[str, int, int]]:
    """(class, training images, validation images)."""
    measured = np.bincount(facts.labels, minlength=len(facts.classes))
    trained = facts.trained_on
    return [(name, trained.get(name, 0), int(measured[i])) for i, name in enumerate(facts.classes)][:MAX_CLASSES]


def _timings(facts: RunFacts) -> list[tuple[str, str]]:
    summary = facts.summary
    rows = [("Whole run", duration(summary["wall_s"]))]
    spent = [line["time_s"] for line in facts.epochs() if "time_s" in line]
    if spent:
        rows.append(("An epoch with its validation, median", duration(float(np.median(spent)))))
    if summary.get("train_images_per_s"):
        rows.append(("Training images per second", f"{summary['train_images_per_s']:.0f}"))
    features = summary.get("features")
    if features:
        known = features["rows"] - features["computed"]
        rows.append(
            ("Features", f"{features['computed']} computed in {duration(features['seconds'])}, {known} were known")
        )
    return rows


def _environment(facts: RunFacts) -> list[tuple[str, str]]:
    summary = facts.summary
    return [
        ("Processes", f"{summary['world_size']} on {summary['device']}"),
        ("Precision", summary["mixed_precision"]),
        ("Seed", str(summary["seed"])),
        ("Model file, SHA-256", summary["model_sha256"]),
        *((name, number) for name, number in summary["versions"].items()),
    ]
