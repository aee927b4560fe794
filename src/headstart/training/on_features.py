"""A run on the feature bank: fill the bank, solve for the head, write the same run folder as every other run."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.data.samples import Manifest, Source
from headstart.data.sampling import epoch_order, keys_of
from headstart.data.transforms import Preprocess, Transform
from headstart.errors import InputError
from headstart.evaluation.predictions import describe, describe_calibration
from headstart.features import logistic_regression
from headstart.features.extraction import BankTransform
from headstart.features.solvers import Solved, predictions_of, solve
from headstart.features.training_set import BankFeatures, backbone_of, bank_features
from headstart.model.calibration import calibrate, reference_rows
from headstart.model.golden_inputs import record as record_golden
from headstart.model.model_file import save_model_tensors
from headstart.model.weights import Weights
from headstart.runs.folder import RunFolder, check_start, choose_folder, create_folder
from headstart.runs.lock import Running
from headstart.runtime.accelerator import set_threads, start_accelerator
from headstart.runtime.processes import finish, on_main
from headstart.runtime.signals import StopRequest
from headstart.training.finish import (
    draw_predictions,
    model_info,
    resolve,
    say_result,
    summarize_run,
    write_pages,
    write_predictions,
)
from headstart.training.metrics_process import Companion, InProcess, companion
from headstart.training.open_data import open_data
from headstart.training.trackers import Trackers, asked_for
from headstart.training.unused_keys import describe_idle


def run(config: RunConfig, *, last: bool = True) -> Path:
    """Solve for the head as configured, measure it, and return the run folder. last: whether the processes may part.

    Raises InputError before anything is written if the input is wrong, Stopped after a signal; features that were
    computed until then are kept in the bank, and nothing else is lost.
    """
    started = time.perf_counter()
    assert config.strategy.name == "frozen_head"
    if not config.data.root:
        raise InputError("data.root is not set; name a folder of images with --data.root DIR")
    if config.train.resume not in ("never", "auto"):
        raise InputError(
            f"train.resume {config.train.resume}: a frozen head on the feature bank has no checkpoints, its features are "
            "kept; leave it at never, or use --strategy.features recompute"
        )
    threads = set_threads(config.runtime.threads)
    with ExitStack() as context:
        accelerator = start_accelerator(config.runtime)
        measuring = companion() if accelerator.is_main_process else None
        if measuring is not None:
            context.enter_context(measuring)
        trackers_asked = asked_for(config.runtime)
        config = resolve(
            config,
            accelerator,
            f"{threads} thread{'s' if threads > 1 else ''} each, head by {config.probe.solver} on the feature bank",
        )
        path = on_main(accelerator, lambda: _choose(config))
        weights, spec, bank, transforms, manifest = open_data(accelerator, config)
        if ignored := describe_idle(config):
            accelerator.print(ignored)
        with StopRequest() as stop:
            features = bank_features(accelerator, config, bank, transforms, manifest, weights, spec, stop=stop)
        solved = on_main(accelerator, lambda: solve(config, manifest, features))
        if accelerator.is_main_process:
            assert measuring is not None
            path = _write(
                config,
                accelerator,
                transforms,
                manifest,
                weights,
                spec,
                features,
                solved,
                measuring,
                path,
                trackers_asked,
                started=started,
            )
        finish(accelerator, last=last)
    return path


def _write(
    config: RunConfig,
    accelerator: Accelerator,
    transforms: Sequence[BankTransform],
    manifest: Manifest,
    weights: Weights,
    spec: Preprocess,
    features: BankFeatures,
    solved: Solved,
    measuring: Companion | InProcess,
    path: Path,
    trackers_asked: Sequence[str],
    *,
    started: float,
) -> Path:
    """The run folder, and the last lines on the terminal."""
    folder = create_folder(path, new=config.train.resume == "never", numbered=not config.out)
    path = folder.path
    running = Running(path)
    folder.forget_metrics_after(-1, epoch=-1)  # what a run left that was killed while it wrote
    folder.write_text("config.yaml", to_yaml(config))
    folder.write_table("manifest.parquet", manifest.table())
    _draw_train_batch(folder, config, manifest, transforms)
    trackers = Trackers(accelerator, trackers_asked, path, config.runtime, asdict(config), step=0)
    folder.also_tell = trackers.record
    trackers.picture("training images", path / "train_batch.png", step=0)
    for line in solved.lines:
        folder.log(line)
    predictions = predictions_of(solved.head, features)
    values = describe(predictions, manifest.classes, measure=measuring.measure)
    _begin_curves(folder, solved, measuring)
    plain = np.flatnonzero(features.plain)
    plain = plain[reference_rows(features.train_labels[plain], seed=config.seed)]
    calibration = calibrate(
        predictions.logits,
        predictions.labels,
        predictions.features,
        chosen_on_val=solved.chosen_on_val,
        out_of_fold=solved.out_of_fold,
        others=(features.train[plain], features.train_labels[plain]),
        seed=config.seed,
    )
    info = replace(
        model_info(config, manifest, spec, weights, measured_on="feature bank"),
        metrics={"val": values, "best_epoch": solved.best_epoch},
        calibration=calibration,
    )
    backbone, _ = backbone_of(config, weights)
    tensors = {**backbone, "fc.weight": torch.from_numpy(solved.head.weight).float(),
               "fc.bias": torch.from_numpy(solved.head.bias).float()}  # fmt: skip
    save_model_tensors(folder.model_file, tensors, replace(info, golden=record_golden(info, tensors)))
    write_predictions(folder, manifest, predictions)
    draw_predictions(folder, manifest, predictions, spec)
    known = features.train_labels[features.plain]
    nearest = logistic_regression.knn_accuracy(
        features.train.only(features.plain), known, features.val, features.val_labels
    )
    among = len(known[logistic_regression.neighbours(len(known))])
    extraction = features.extraction
    summary = summarize_run(
        config, accelerator, manifest, weights, values, folder, best_epoch=solved.best_epoch, epochs=solved.epochs
    )
    summary["train_images_per_s"] = extraction.computed / extraction.seconds if extraction.computed else None
    summary["calibration"] = describe_calibration(predictions, calibration)
    summary["probe"] = {**solved.facts, "knn_accuracy": nearest, "knn_images": among}
    summary["features"] = {
        "bank": str(features.folder),
        "form": features.form,
        "rows": extraction.wanted,
        "computed": extraction.computed,
        "seconds": extraction.seconds,
    }
    summary["wall_s"] = time.perf_counter() - started
    write_pages(folder, manifest, summary)
    measuring.wait()
    folder.write_json("summary.json", summary)
    running.end()
    trackers.finish(folder.model_file, summary)
    sampled = f", among {among} of the {len(known)} training images" if among < len(known) else ""
    accelerator.print(f"5 nearest neighbours on the same features{sampled}: accuracy {nearest:.1%}".replace("%", " %"))
    say_result(accelerator, values, _in_words(solved), wall_s=summary["wall_s"], path=path)
    return path


def _begin_curves(folder: RunFolder, solved: Solved, measuring: Companion | InProcess) -> None:
    chosen = [line for line in solved.lines if "cv_loss" in line]
    if chosen:
        measuring.draw_selection(
            folder.path / "curves.png",
            l2=[line["l2"] for line in chosen],
            losses=[line["cv_loss"] for line in chosen],
            errors=[line["cv_loss_se"] for line in chosen],
            accuracies=[line["cv_accuracy"] for line in chosen],
            chosen=solved.facts["l2"],
        )
    else:
        measuring.draw_curves(folder.path / "curves.png", [line for line in solved.lines if "epoch" in line])


def _draw_train_batch(
    folder: RunFolder, config: RunConfig, manifest: Manifest, transforms: Sequence[BankTransform]
) -> None:
    """Training images in the first augmented view, or in the plain one if there is no other."""
    from headstart.report.png import image_grid

    samples = manifest.of("train")
    transform = transforms[min(1, len(transforms) - 1)]
    order = epoch_order(keys_of(samples.column("id")), seed=config.seed, epoch=0)
    picked = [samples[int(index)] for index in order[:12]]
    images = [
        transform.pixels(sample.sha256, partial(_load, transform.transform, manifest.source, sample.path))
        for sample in picked
    ]
    image_grid(folder.path / "train_batch.png", images, [sample.label for sample in picked])


def _load(transform: Transform, source: Source, path: str) -> Image.Image:
    return transform.decode(source.read(path))


def _choose(config: RunConfig) -> Path:
    path = choose_folder(config.out, strategy=config.strategy.name)
    check_start(path, resume=config.train.resume)
    return path


def _in_words(solved: Solved) -> str:
    if solved.facts["solver"] == "lbfgs":
        return f"l2 {solved.facts['l2']:.3g}, gradient {solved.facts['gradient_norm']:.0e}"
    if solved.chosen_on_val:
        return f"epoch {solved.best_epoch} of {solved.epochs}"
    return f"after {solved.facts['steps']} steps"
