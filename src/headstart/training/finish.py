"""The end of every run, whatever was trained: metrics, model file, predictions, pictures, summary, pages."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.data.decode import UnreadableImage
from headstart.data.samples import Manifest
from headstart.data.transforms import Preprocess, train_short_side
from headstart.evaluation.predictions import Predictions, describe, describe_calibration
from headstart.files import sha256_of
from headstart.messages import LOG, warn
from headstart.model.calibration import calibrate
from headstart.model.golden_inputs import record as record_golden
from headstart.model.model_file import ModelInfo, save_model_tensors
from headstart.model.weights import Weights
from headstart.report.image_grid import BAD, GOOD, image_grid
from headstart.runs.folder import RunFolder, predictions_table
from headstart.runs.lock import whole_of
from headstart.runs.summary import Summary
from headstart.runtime.accelerator import versions
from headstart.runtime.signals import StopRequest
from headstart.training.next_commands import next_commands
from headstart.training.session import Session
from headstart.wording import command_line, headline, one_line

SHOWN_PREDICTIONS = 18  # in val_predictions.png


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was trained. info: the model file's header without its metrics; tensors: the model file's, of the best
    epoch; predictions: of these on the validation images.

    chosen_on_val: whether the validation images chose among several models. out_of_fold: logits and labels of
    training images by models not trained on them; references: features and labels that new images are compared with:
    both for the calibration. images_per_s: of training, or of extracting features. found: how the model was found,
    such as "epoch 3 of 10". notes: lines to print before the result. probe, features: for the summary."""

    info: ModelInfo
    manifest: Manifest
    weights: Weights
    tensors: Mapping[str, torch.Tensor]
    predictions: Predictions
    best_epoch: int
    epochs: int
    chosen_on_val: bool
    found: str
    images_per_s: float | None
    out_of_fold: tuple[np.ndarray, np.ndarray] | None = None
    references: tuple[np.ndarray, np.ndarray] | None = None
    notes: Sequence[str] = ()
    probe: dict[str, Any] | None = None
    features: dict[str, Any] | None = None


def finish(session: Session, result: Result) -> None:
    """Write what a finished run holds and print its result; on the main process. The summary is written last."""
    if not session.accelerator.is_main_process:
        return
    # this takes seconds: a signal meanwhile must not cost the run
    with StopRequest("the run is finished, its files are being written"):
        folder, manifest, predictions = session.folder, result.manifest, result.predictions
        val, limit = describe(predictions, manifest.classes), session.config.data.limit
        calibration = calibrate(
            predictions.logits,
            predictions.labels,
            predictions.features,
            chosen_on_val=result.chosen_on_val,
            out_of_fold=result.out_of_fold,
            others=result.references,
            seed=session.config.seed,
        )
        info = replace(result.info, metrics={"val": val, "best_epoch": result.best_epoch}, calibration=calibration)
        golden = record_golden(info, result.tensors)
        save_model_tensors(folder.model_file, result.tensors, replace(info, golden=golden))
        samples = manifest.of("val")
        table = predictions_table(
            ids=samples.column("id"),
            paths=samples.column("path"),
            labels=samples.column("label"),
            probabilities=predictions.probabilities,
            classes=manifest.classes,
        )
        folder.write_table("predictions.parquet", table)
        draw_predictions(folder.path / "val_predictions.png", manifest, predictions, session.spec)
        summary = Summary(
            strategy=info.strategy,
            backbone=info.backbone,
            classes=list(manifest.classes),
            train={"n": len(manifest.of("train"))} | ({} if limit is None else {"limit": limit}),
            val=val,
            test={"n": manifest.num_test} if manifest.has_test and manifest.num_test != 0 else None,
            best_epoch=result.best_epoch,
            epochs=result.epochs,
            wall_s=time.perf_counter() - session.began,
            train_images_per_s=result.images_per_s,
            world_size=session.accelerator.num_processes,
            device=session.accelerator.device.type,
            mixed_precision=info.mixed_precision,
            seed=info.seed,
            weights=result.weights.source,
            weights_sha256=result.weights.sha256,
            manifest_sha256=manifest.sha256,
            model_sha256=sha256_of(folder.model_file),
            skipped=[asdict(skipped) for skipped in manifest.skipped],
            versions=versions(),
            calibration=describe_calibration(predictions, calibration),
            probe=result.probe,
            features=result.features,
            finished=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        write_pages(folder.path, partial(_write_pages, folder, manifest, summary))
        summary.write(folder)
        session.running.release()
        session.trackers.finish(folder.model_file, summary)
        for note in result.notes:
            LOG.info(note)
        LOG.info(f"{headline(val)}, {result.found}, {summary.wall_s:.{0 if summary.wall_s >= 10 else 1}f} s")
        if whole_of(session.path) == session.path:  # else the report of all runs comes at their end
            LOG.info("report: %s", session.path / "report.html")
            LOG.info("\n  ".join(["next:", *next_commands(session.path, session.config, manifest)]))


def model_info(session: Session, manifest: Manifest, weights: Weights, *, measured_on: str) -> ModelInfo:
    """The header of the model file, without metrics. measured_on: "network" or "feature bank"."""
    config = session.config
    return ModelInfo(
        classes=manifest.classes,
        preprocess=_preprocess(session),
        strategy=config.strategy.name,
        backbone=session.backbone.name,
        mixed_precision=config.runtime.mixed_precision,
        channels_last=config.runtime.channels_last,
        eval_batch_size=config.train.eval_batch_size,
        measured_on=measured_on,
        manifest_sha256=manifest.sha256,
        weights=Path(weights.source).name,  # the folder that they lie in is private
        weights_sha256=weights.sha256,
        seed=config.seed,
        versions=versions(),
        metrics={},
    )


def _preprocess(session: Session) -> Preprocess:
    """That of predictions, with the size of the images that random crops were cut from, if any were."""
    config = session.config
    cached = config.strategy.name == "frozen_head" and config.strategy.features == "bank"
    if cached and not config.probe.augmented_copies:
        return session.spec
    return replace(session.spec, train_short_side=train_short_side(config.data, session.spec))


def write_pages(path: Path, write: Callable[[], object]) -> None:
    """report.html and README.md of a folder. What goes wrong is one warning: a run never fails because of its pages."""
    try:
        write()
    except Exception as error:
        warn(
            f"report.html and README.md were not written ({type(error).__name__}: {one_line(error)[:300]}); everything "
            f"else is there, and this tries again: {command_line('report', path)}"
        )


def _write_pages(folder: RunFolder, manifest: Manifest, summary: Summary) -> None:
    """From the files of the folder and the summary to come."""
    from headstart.report.command import write_pages as write

    write(folder.path, read=manifest.source.read, summary=summary)


def draw_predictions(path: Path, manifest: Manifest, predictions: Predictions, spec: Preprocess) -> None:
    """Validation images evenly spread over the split, with class, confidence and the true class of errors. An image
    that cannot be read any more is gray."""
    samples, probabilities = manifest.of("val"), predictions.probabilities
    last = SHOWN_PREDICTIONS - 1
    images, titles, colors = [], [], []
    for i in sorted({round(k * (len(samples) - 1) / last) for k in range(SHOWN_PREDICTIONS)}):
        predicted, label = int(probabilities[i].argmax()), int(predictions.labels[i])
        try:
            images.append(spec.resize_and_crop(spec.decode(manifest.source.read(samples[i].path))))
        except (UnreadableImage, OSError):  # gone since it was evaluated, which must not cost the run
            images.append(torch.full((3, spec.image_size, spec.image_size), 128, dtype=torch.uint8))
        verdict = "correct" if predicted == label else f"error: {manifest.classes[label]}"
        titles.append(f"{manifest.classes[predicted]} {probabilities[i, predicted]:.0%}\n{verdict}")
        colors.append(GOOD if predicted == label else BAD)
    image_grid(path, images, titles, colors)
