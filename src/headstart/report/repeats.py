"""report.html and README.md of a folder of repeated runs: the result of all of them together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from headstart.files import write_text
from headstart.report.pages import MAX_CLASSES, STRATEGIES, confusion_values, public, report_environment
from headstart.report.per_class import per_class, worst_first
from headstart.runs.about import About, read_about, write_about
from headstart.runs.files import damaged, mapping_with, read_yaml
from headstart.runs.lock import SUMMARY
from headstart.runs.summary import RepeatsSummary, Summary
from headstart.wording import command_line, plural

RUN_KEYS = ("folder", "n", "correct", "accuracy", "loss", "best_epoch", "wall_s")


def write_repeats_pages(path: Path, *, summary: RepeatsSummary | None = None, about: About | None = None) -> Path:
    """Write report.html and README.md; returns the path of the report. summary: the content of summary.json if that
    file is not written yet; about: the new content of about.json, None leaves the file as it is.

    Raises InputError naming the file that is missing or damaged."""
    whole = RepeatsSummary.read(path) if summary is None else summary
    for one in whole.runs:
        mapping_with(path / SUMMARY, one, RUN_KEYS, where="a run")
    runs = [Summary.read(path / one["folder"]) for one in whole.runs]
    classes = tuple(whole.classes)
    confusion = np.sum([_confusion(path, one, len(classes)) for one in runs], axis=0)
    rows = per_class(confusion, classes, {})
    described = read_about(path) if about is None else about
    values: dict[str, Any] = {
        "name": path.resolve().name,
        "summary": whole,
        "runs": runs,
        "title": title_of(whole),
        "about": described.facts(date=max(one.finished or "" for one in runs)),
        "is_described": bool(described.purpose and described.author),
        "pooled": whole.repeats == "folds",  # else an image is counted once for each seed
        "strategy": STRATEGIES[whole.strategy],
        "lines": repeats_in_words(whole),
        "rows": worst_first(rows)[:MAX_CLASSES],
        "num_more_rows": max(0, len(rows) - MAX_CLASSES),
        "config": yaml.safe_dump(public(read_yaml(path, "config.yaml")), sort_keys=False, allow_unicode=True),
        "train_again": command_to_train_again(path),
        "counts": {"n": int(confusion.sum()), "correct": int(confusion.trace())},
        **confusion_values(confusion, classes),
    }
    templates = report_environment()
    card, page = (templates.get_template(name).render(values) for name in ("repeats_card.md.jinja", "repeats.html"))
    if about is not None:
        write_about(path, about)
    write_text(path / "README.md", card)
    write_text(path / "report.html", page)
    return path / "report.html"


def title_of(summary: RepeatsSummary) -> str:
    """'5-fold cross-validation', '3 seeds'."""
    count = len(summary.runs)
    return f"{count}-fold cross-validation" if summary.repeats == "folds" else plural(count, "seed")


def command_to_train_again(path: Path) -> str:
    """The command that trains the model to use after cross-validation: the same settings, without folds."""
    final = path.with_name(f"{path.resolve().name}-final")
    return command_line("train", "--config", path / "config.yaml", "--train.folds", 0, "--out", final)


def repeats_in_words(summary: RepeatsSummary) -> list[str]:
    """The result, in a few lines."""
    spread, val, count = summary.spread["accuracy"], summary.val, summary.val["n"]
    lines = [
        f"mean accuracy {spread['mean']:.1%}, sd {100 * spread['sd']:.1f} points, "
        f"from {spread['lowest']:.1%} to {spread['highest']:.1%}"
    ]
    if summary.repeats == "folds":
        lines.append(
            f"all {count} images, each by the network that was not trained on it: {val['accuracy']:.1%} "
            f"{_interval(val['accuracy_ci95'])} (Wilson)"
        )
    elif summary.same_images:
        lines.append(f"95% interval for {count} images: {_interval(val['accuracy_ci95'])} (Wilson, of the mean)")
    else:
        lines.append(
            f"each seed has its own validation images: {val['correct']} of {count} predictions are correct; an image "
            "may be among them several times, so there is no interval"
        )
    if summary.epoch_chosen_on_val:
        lines.append(
            "each run selected its best epoch on its validation images, so the accuracy is slightly optimistic"
        )
    what = "seeds" if summary.same_images else "splits"
    if spread["ci95"] is not None:
        lines.append(f"95% interval of the mean over {what}: {_interval(spread['ci95'])} ({spread['ci95_is']})")
    else:
        lines.append(f"no interval of the mean over {what}: all runs have the same accuracy")
    return lines


def _interval(limits: Sequence[float]) -> str:
    return f"[{limits[0]:.1%}, {limits[1]:.1%}]"


def _confusion(path: Path, summary: Summary, num_classes: int) -> np.ndarray:
    """(C, C) int64. Raises InputError."""
    try:
        found = np.array(summary.val["confusion_matrix"], dtype=np.int64)
    except (KeyError, TypeError, ValueError):
        found = np.empty(0, dtype=np.int64)
    if found.shape != (num_classes, num_classes):
        raise damaged(path / SUMMARY, f"a run has no confusion matrix of {plural(num_classes, 'class')}")
    return found
