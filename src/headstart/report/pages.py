"""The report page and the model card of a finished run. Their text is in assets/report.html and model_card.md.jinja."""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from markupsafe import Markup, escape

from headstart.data_doctor.findings import KINDS, number_of
from headstart.html import environment
from headstart.model.backbones import find_backbone
from headstart.model.open_set import WRONGLY_FLAGGED
from headstart.report.figures import curves, reliability
from headstart.report.gallery import MAX_FINDINGS, Gallery
from headstart.report.heat_map import heat_map
from headstart.report.per_class import confusions, per_class, worst_first
from headstart.runs.finished_run import FinishedRun
from headstart.wording import command_line

if TYPE_CHECKING:
    import jinja2

MAX_MATRIX, MAX_HEAT_MAP = 24, 100  # classes of a confusion matrix with numbers, and of one without
MAX_CLASSES = 1000  # rows of the table of classes
MAX_CONFUSIONS = 12
CARD_CLASSES = 20  # that the model card lists; longer lists are in the header of the model file
PLACES = ("data.root", "model.weights", "runtime.bank")  # keys of which the model card shows the last name alone
SHOWN_KINDS = ("duplicate_across_splits", "near_duplicate_across_splits", "suspected_label")
"""The kinds of findings that are listed; of the others, only the number is shown."""
_PLAIN = {
    "torchvision": """\
from safetensors.torch import load_file
from torchvision.models import {name}

model = {name}(num_classes={classes})
model.load_state_dict(load_file("model.safetensors"), strict=True)
model.eval()""",
    "timm": """\
import timm
from safetensors.torch import load_file

model = timm.create_model("{name}", num_classes={classes})
model.load_state_dict(load_file("model.safetensors"), strict=True)
model.eval()""",
}
"""Programs that open the model file without headstart."""
STRATEGIES = {
    "fine_tune": "every layer fine-tuned",
    "frozen_head": "a new head on a frozen backbone",
    "probe_then_tune": "a linear probe first, then every layer fine-tuned",
}


def render_report(run: FinishedRun, gallery: Gallery) -> str:
    run = _public(run)
    confusion = np.array(run.summary.val["confusion_matrix"], dtype=np.int64)
    rows = per_class(confusion, run.classes, run.num_training_images)
    most_frequent = max(rows, key=lambda row: row.num_training)
    curves_of_run = curves(run)
    return _render(
        "report.html",
        run,
        gallery=gallery,
        strategy=STRATEGIES[run.info.strategy],
        baseline=(most_frequent.name, most_frequent.recall.n / confusion.sum()),
        curves=curves_of_run,
        **confusion_values(confusion, run.classes),
        rows=rows[:MAX_CLASSES],
        worst_first=worst_first(rows)[:MAX_CLASSES],
        num_more_rows=max(0, len(rows) - MAX_CLASSES),
        reliability=reliability(run),
        doctor=run.doctor,
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
        sections=_sections(run, has_curves=bool(curves_of_run)),
        epoch_s=[line["time_s"] for line in run.epochs() if "time_s" in line],
    )


def _public(run: FinishedRun) -> FinishedRun:
    return replace(run, config=public(run.config))


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the query of an address in data.root, such as a signature, as the pages are shown to others."""
    data, root = config["data"], str(config["data"]["root"])
    return {**config, "data": {**data, "root": root.partition("?")[0] if "://" in root else root}}


def confusion_values(confusion: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """For the macro `confusion`: the matrix with numbers, or as a picture, or neither; and the most frequent errors."""
    small = len(classes) <= MAX_MATRIX
    return {
        "matrix": confusion.tolist() if small else None,
        "heat": None if small or len(classes) > MAX_HEAT_MAP else heat_map(confusion, classes),
        "confusions": confusions(confusion, classes, limit=MAX_CONFUSIONS),
    }


def render_model_card(run: FinishedRun) -> str:
    """Markdown with the metadata block that the Hugging Face hub reads: huggingface.co/docs/hub/model-cards."""
    run = _public(run)
    val = run.summary.val
    confusion = np.array(val["confusion_matrix"], dtype=np.int64)
    rows = per_class(confusion, run.classes, run.num_training_images)
    changed = {
        key: PurePath(value).name if key in PLACES and isinstance(value, str) else value
        for key, value in run.changed_keys().items()
    }
    metrics = (("accuracy", "Accuracy", "accuracy"), ("f1", "Macro F1", "macro_f1"), ("loss", "Log loss", "loss"))
    return _render(
        "model_card.md.jinja",
        run,
        metrics=[(kind, title, val[key]) for kind, title, key in metrics if math.isfinite(val[key])],
        data_name=str(run.config["data"]["root"]).rstrip("/").rsplit("/", 1)[-1] or "images",
        rows=rows if len(rows) <= CARD_CLASSES else [],
        changed=changed,
        few=[row.name for row in rows if row.num_training < 20],
        not_evaluated=[row.name for row in rows if not row.recall.n],
    )


def _render(template: str, run: FinishedRun, **values: Any) -> str:
    calibration = run.info.calibration
    backbone = find_backbone(run.info.backbone)
    found = report_environment().get_template(template)
    return found.render(
        run=run,
        summary=run.summary,
        val=run.summary.val,
        info=run.info,
        backbone=backbone,
        pretrained=run.info.weights in ("imagenet", "hub"),
        plain=_PLAIN["torchvision" if backbone.of_torchvision else "timm"].format(
            name=backbone.timm, classes=len(run.classes)
        ),
        spec=run.info.preprocess,
        num_training=sum(run.num_training_images.values()),
        test_command=command_line("evaluate", run.path),
        skipped=run.summary.skipped,
        calibration=run.summary.calibration if calibration else None,
        open_set=calibration.open_set if calibration else None,
        flagged=WRONGLY_FLAGGED,
        about=run.about.facts(date=run.summary.finished),
        **values,
    )


def _sections(run: FinishedRun, *, has_curves: bool) -> list[tuple[str, str]]:
    """The anchors and names of the navigation."""
    found = [
        ("results", "Results"),
        ("training", "Training" if has_curves else ""),
        ("confusion", "Confusion"),
        ("classes", "Classes"),
        ("confidence", "Calibration"),
        ("images", "Images"),
        ("doctor", "Data doctor" if run.doctor else ""),
        ("data", "Data"),
        ("recipe", "Configuration"),
        ("use", "Use"),
        ("glossary", "Glossary"),
    ]
    return [(anchor, name) for anchor, name in found if name]


def report_environment() -> "jinja2.Environment":
    found = environment()
    found.filters |= {
        "breakable": _breakable,
        "duration": _duration,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
        "markdown": _markdown,
        "median": lambda values: float(np.median(values)),
        "names": _names,
        "plain": _plain,
        "repr": repr,
        "subject": _subject,
    }
    found.globals |= {"log": math.log, "KINDS": KINDS, "number_of": number_of}
    found.globals |= {"SHOWN_KINDS": SHOWN_KINDS, "MAX_FINDINGS": MAX_FINDINGS}
    return found


def _plain(value: Any) -> str:
    """A value of the configuration, floats with four significant digits."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _breakable(key: str) -> Markup:
    """A key of the configuration that can be wrapped after a point or an underscore."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(key))))


def _subject(classes: Sequence[str]) -> str:
    """'ants or bees', or the number of classes."""
    if len(classes) > 4:
        return f"{len(classes)} classes"
    return " or ".join([", ".join(classes[:-1]), classes[-1]]) if len(classes) > 1 else classes[0]


def _duration(seconds: float) -> str:
    """'8.3 s', '3 min 42 s', '1 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _markdown(name: str) -> str:
    """A name as text on one line of Markdown, whatever it contains."""
    text = html.escape(" ".join(name.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def _names(names: Sequence[str]) -> str:
    """At most CARD_CLASSES names for Markdown."""
    more = f" and {len(names) - CARD_CLASSES} more" if len(names) > CARD_CLASSES else ""
    return ", ".join(map(_markdown, names[:CARD_CLASSES])) + more
