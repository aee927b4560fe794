"""The results of `headstart evaluate` as a file: a self-contained page with the blocks of the report, or JSON."""

import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from headstart.errors import InputError
from headstart.evaluation import metrics
from headstart.files import write_text
from headstart.model.backbones import find_backbone
from headstart.report.figures import reliability_figures
from headstart.report.gallery import Gallery, gallery_of_predictions
from headstart.report.pages import MAX_CLASSES, confusion_values, report_environment
from headstart.report.per_class import per_class, worst_first
from headstart.runs.evaluate import Evaluated

MAX_SKIPPED = 200  # files that are listed


def write_evaluation(found: Evaluated, out: str) -> None:
    """Write the page to a name that ends in .html, JSON to any other, in the main process only. Raises InputError if
    that fails."""
    if not PartialState().is_main_process:
        return
    if Path(out).suffix.lower() == ".html":
        text = render_evaluation(found, gallery_of_predictions(found.images, found.read))
    else:
        text = found.result.to_json() + "\n"
    try:
        write_text(Path(out), text)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None


def render_evaluation(found: Evaluated, gallery: Gallery) -> str:
    """The page as HTML."""
    images, result = found.images, found.result
    confusion = np.array(result.confusion_matrix, dtype=np.int64)
    rows = per_class(confusion, images.classes, {})
    most_frequent = max(rows, key=lambda row: row.recall.n)
    scaled = None if images.info.calibration is None else images.info.calibration.probabilities(images.logits)
    return (
        report_environment()
        .get_template("evaluation.html")
        .render(
            model=images.model_file,
            info=images.info,
            data=found.data,
            about=found.about.facts(trained=found.trained, evaluated=datetime.now(UTC).isoformat()),
            knows_training_images=found.knows_training_images,
            spec=images.info.preprocess,
            backbone=find_backbone(images.info.backbone),
            classes=images.classes,
            val=result.to_dict(),
            in_run=images.info.metrics.get("val"),
            baseline=(most_frequent.name, most_frequent.recall.n / result.n),
            guessing=math.log(len(images.classes)),
            worst_first=worst_first(rows)[:MAX_CLASSES],
            num_more_rows=max(0, len(rows) - MAX_CLASSES),
            reliability=reliability_figures(
                images, result.to_dict(), scaled, {} if scaled is None else _calibration(scaled, images.labels)
            ),
            gallery=gallery,
            skipped=result.skipped[:MAX_SKIPPED],
            num_skipped=len(result.skipped),
            **confusion_values(confusion, images.classes),
        )
    )


def _calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The metrics under a reliability diagram. probabilities: (n, C); labels: (n,)."""
    return {
        "loss": float(metrics.log_losses(probabilities, labels).mean()),
        "brier": float(metrics.brier_scores(probabilities, labels).mean()),
        **asdict(metrics.calibration_error(probabilities, labels)),
    }
