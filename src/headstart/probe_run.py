"""A run on the feature bank: fill the bank, solve for the head, write the same run folder as every other run."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from headstart import probe
from headstart.artifacts import (
    RunFolder,
    check_new_folder,
    choose_folder,
    create_folder,
    is_unfinished,
    save_model_tensors,
)
from headstart.calibration import calibrate, reference_rows
from headstart.companion import Companion
from headstart.config import OptimConfig, ProbeConfig, RunConfig
from headstart.data.manifest import build_manifest
from headstart.data.samples import Manifest, Source
from headstart.data.sampling import StepSampler, epoch_ends, epoch_order, keys_of
from headstart.data.source import open_source
from headstart.errors import InputError
from headstart.evaluate import Predictions, describe, describe_calibration
from headstart.extract import BankView, Extraction, features_of, fill, rows_of, views_of
from headstart.features import EVAL_VIEW, Bank, BankRows, bank_key, default_location, row_name
from headstart.golden import record as record_golden
from headstart.idle import describe_idle
from headstart.loss import TrainingLoss, logit_offsets
from headstart.parsing import to_yaml
from headstart.preprocess import Preprocess, View
from headstart.results import (
    describe_data,
    draw_predictions,
    model_info,
    say_result,
    summarize_run,
    write_pages,
    write_predictions,
)
from headstart.running import Running
from headstart.runtime import (
    StopRequest,
    choose_precision,
    finish,
    on_main,
    room_for_images,
    set_threads,
    start_accelerator,
)
from headstart.schedule import lr_factor
from headstart.stats import log_loss
from headstart.trackers import Trackers, asked_for
from headstart.trunk import FEATURES, FrozenTrunk, form_of
from headstart.weights import Weights, ensure_available, load_weights

SELECTION_IMAGES = 20_000  # cross-validation looks at no more images than this


@dataclass(frozen=True)
class BankFeatures:
    """Features of both splits. train: (n * views, 512), all views of the first image, then of the second, ...;
    train_labels: (n * views,); owners: the sample id of each row; plain: (n * views,) bool, evaluation views."""

    train: BankRows
    train_labels: np.ndarray
    owners: list[str]
    plain: np.ndarray
    val: BankRows
    val_labels: np.ndarray
    extraction: Extraction
    form: str
    folder: Path


@dataclass(frozen=True)
class Solved:
    """A head, what the run folder says of how it was found, and its lines of metrics.jsonl.

    chosen_on_val: whether the validation images chose among several heads; out_of_fold: logits and labels of training
    images, by heads that did not see them."""

    head: probe.Head
    facts: dict[str, Any]
    lines: list[dict[str, Any]]
    best_epoch: int = 1
    epochs: int = 1
    chosen_on_val: bool = False
    out_of_fold: tuple[np.ndarray, np.ndarray] | None = None


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
        companion = context.enter_context(Companion()) if accelerator.is_main_process else None
        trackers_asked = asked_for(config.runtime)
        config = _resolve(config, accelerator, threads=threads)
        path = on_main(accelerator, lambda: _choose(config))
        weights, spec, bank, views, manifest = open_data(accelerator, config)
        if ignored := describe_idle(config):
            accelerator.print(ignored)
        with StopRequest() as stop:
            features = bank_features(accelerator, config, bank, views, manifest, weights, spec, stop=stop)
        solved = on_main(accelerator, lambda: solve(config, manifest, features))
        if accelerator.is_main_process:
            assert companion is not None
            path = _write(
                config,
                accelerator,
                views,
                manifest,
                weights,
                spec,
                features,
                solved,
                companion,
                path,
                trackers_asked,
                started=started,
            )
        finish(accelerator, last=last)
    return path


def open_data(
    accelerator: Accelerator, config: RunConfig
) -> tuple[Weights, Preprocess, Bank, list[BankView], Manifest]:
    """Weights, preprocessing, bank, views and images of a resolved configuration; an image that the bank knows is not
    decoded, and the pixels of the others are kept for the extraction while there is room. Raises InputError in all processes if one of them cannot be had."""
    on_main(accelerator, lambda: ensure_available(config.model.weights))
    weights, spec = load_weights(config.model.weights), Preprocess.of(config.data)
    bank = open_bank(accelerator, config, weights, spec)
    data = config.data
    room = room_for_images(data)
    views = views_of(data, spec, num_views=config.probe.views, seed=config.seed, room=room)

    def keep(split: str | None, sha256: str, image: Image.Image) -> None:
        for view in views[:1] if split == "val" else views[:2]:  # all augmented views prepare the image alike
            view.view.keep(sha256, image)

    manifest = on_main(
        accelerator,
        lambda: build_manifest(
            open_source(data),
            data,
            seed=config.seed,
            say=print,
            decoder=spec.decode,
            decodes=lambda sha256: row_name(sha256, EVAL_VIEW) in bank,
            keep=keep,
        ),
    )
    accelerator.print(describe_data(manifest))
    return weights, spec, bank, views, manifest


def open_bank(accelerator: Accelerator, config: RunConfig, weights: Weights, spec: Preprocess) -> Bank:
    """The bank of this trunk and preprocessing; says what is damaged in it."""
    _, weights_key = _backbone(config, weights)
    form = form_of(precision=config.runtime.mixed_precision, device=accelerator.device)
    key = bank_key(weights_sha256=weights_key, form=form, preprocess=spec.to_json())
    location = Path(config.runtime.bank) if config.runtime.bank else default_location()
    bank = Bank(location, key, width=FEATURES)
    for damaged in bank.damaged:
        accelerator.print(f"{damaged.path} is damaged ({damaged.reason}); its features are computed anew")
    return bank


def trunk_of(accelerator: Accelerator, config: RunConfig, weights: Weights) -> Callable[[], FrozenTrunk]:
    """Builds the frozen trunk, once it is known to be needed."""
    return lambda: FrozenTrunk(
        _backbone(config, weights)[0], precision=config.runtime.mixed_precision, device=accelerator.device
    )


def bank_features(
    accelerator: Accelerator,
    config: RunConfig,
    bank: Bank,
    views: Sequence[BankView],
    manifest: Manifest,
    weights: Weights,
    spec: Preprocess,
    *,
    stop: StopRequest,
) -> BankFeatures:
    """The features of all images, out of the bank after what it lacked was computed. All processes take part."""
    train_samples, val_samples = manifest.of("train"), manifest.of("val")
    train_rows = rows_of(manifest.source, train_samples, views)
    val_rows = rows_of(manifest.source, val_samples, views[:1])
    extraction = fill(
        accelerator,
        bank,
        train_rows + val_rows,
        spec,
        trunk_of(accelerator, config, weights),
        num_workers=config.data.num_workers,
        stop=stop,
    )
    accelerator.print(describe_extraction(extraction, bank))
    return BankFeatures(
        train=features_of(bank, train_rows),
        train_labels=np.repeat(train_samples.codes(manifest.classes), len(views)),
        owners=[sha256 for sha256 in train_samples.column("sha256") for _ in views],
        plain=np.tile(np.arange(len(views)) == 0, len(train_samples)),
        val=features_of(bank, val_rows),
        val_labels=val_samples.codes(manifest.classes),
        extraction=extraction,
        form=form_of(precision=config.runtime.mixed_precision, device=accelerator.device),
        folder=bank.path,
    )


def solve(config: RunConfig, manifest: Manifest, features: BankFeatures) -> Solved:
    """The head by the configured solver. One process."""
    num_classes = len(manifest.classes)
    if config.data.sampling == "balanced" and config.probe.solver != "sgd":
        # nothing is drawn where all rows count at once; the loss that balanced draws have on average is the weighted one
        config = replace(
            config,
            data=replace(config.data, sampling="natural"),
            optim=replace(config.optim, class_weights="balanced"),
        )
    match config.probe.solver:
        case "lbfgs":
            return _solve_exactly(config, num_classes, features)
        case "sgd":
            return _solve_by_epochs(config, manifest, features)
        case "full_batch":
            return _solve_by_full_batches(config, num_classes, features)


def _facts(config: RunConfig) -> dict[str, Any]:
    """What the summary says of every solver."""
    return {
        "solver": config.probe.solver,
        "views": config.probe.views,
        "class_weights": config.optim.class_weights,
        "logit_adjustment": config.optim.logit_adjustment,
    }


def _solve_exactly(config: RunConfig, num_classes: int, features: BankFeatures) -> Solved:
    started = time.perf_counter()
    views = len(features.plain) // int(features.plain.sum())
    weights = np.ones(len(features.train_labels))
    if config.optim.class_weights == "balanced":
        weights = probe.class_weights(features.train_labels, num_classes=num_classes)
    facts = _facts(config)
    lines: list[dict[str, Any]] = []
    l2 = config.probe.l2
    out_of_fold: tuple[np.ndarray, np.ndarray] | None = None
    if l2 is None:
        chosen = _choose_l2(config.probe, num_classes, features, weights, seed=config.seed)
        l2 = chosen.l2
        rows = zip(chosen.grid, chosen.losses, chosen.loss_errors, chosen.accuracies, strict=True)
        for strength, loss, error, accuracy in rows:
            lines.append({"step": 0, "l2": strength, "cv_loss": loss, "cv_loss_se": error, "cv_accuracy": accuracy})
        facts |= {"l2_chosen_by": f"{chosen.folds}-fold cross-validation"}
        out_of_fold = chosen.logits, chosen.labels
    # every view of an image counts, all of them together as one image: so l2 means the same for any number of views
    found = probe.fit(features.train, features.train_labels, num_classes=num_classes, l2=l2 * views, weights=weights)
    head = found.head
    if config.optim.logit_adjustment:
        # the intercept is free, so the optimum of the loss with offsets is that without them, less the offsets; the losses
        # of the cross-validation are the same too
        offsets = logit_offsets(config.optim, features.train_labels, num_classes=num_classes)
        head = replace(head, bias=head.bias - offsets)
        if out_of_fold is not None:
            out_of_fold = out_of_fold[0] - offsets, out_of_fold[1]
    facts |= {
        "l2": l2,
        "objective": found.objective,
        "gradient_norm": found.gradient_norm,
        "iterations": found.iterations,
        "converged": found.converged,
        "fit_s": time.perf_counter() - started,
    }
    solved = Solved(_as_stored(head), facts, lines, out_of_fold=out_of_fold)
    return _with_epoch_line(solved, features, step=found.iterations)


def _choose_l2(
    config: ProbeConfig, num_classes: int, features: BankFeatures, weights: np.ndarray, *, seed: int
) -> probe.CrossValidation:
    """By stratified k-fold cross-validation over images; at most SELECTION_IMAGES of them, evenly taken."""
    views = len(features.plain) // int(features.plain.sum())
    smallest = int(np.bincount(features.train_labels[features.plain], minlength=num_classes).min())
    if smallest < 2:
        raise InputError(
            "a class has a single training image, so probe.l2 cannot be chosen by cross-validation; set it"
        )
    folds = min(config.folds, smallest)
    step = -(-int(features.plain.sum()) // SELECTION_IMAGES)
    used = np.arange(len(features.train_labels)) // views % step == 0
    labels = features.train_labels[used]
    owners = [owner for owner, take in zip(features.owners, used, strict=True) if take]
    return probe.cross_validate(
        features.train[used],
        labels,
        probe.stratified_folds(owners, labels, folds=folds, seed=seed),
        num_classes=num_classes,
        weights=weights[used],
        counted=features.plain[used],
        one_standard_error=config.one_standard_error,
        rows_per_image=views,
    )


def _solve_by_epochs(config: RunConfig, manifest: Manifest, features: BankFeatures) -> Solved:
    """The tutorials' minibatches on stored features: sample order, schedule and optimizer are those of the loop."""
    started = time.perf_counter()
    samples, train, optim = manifest.of("train"), config.train, config.optim
    if train.batch_size > len(samples):
        raise InputError(
            f"train.batch_size {train.batch_size} exceeds the {len(samples)} training images; use at most {len(samples)}"
        )
    views = config.probe.views + 1
    ends = epoch_ends(num_samples=len(samples), batch_size=train.batch_size, epochs=train.epochs)
    steps_per_epoch = len(samples) / train.batch_size
    head = _fresh_head(config, num_classes=len(manifest.classes))
    optimizer = _optimizer(head, optim)
    peak = [group["lr"] for group in optimizer.param_groups]
    rows, labels = torch.from_numpy(features.train[:]), torch.from_numpy(features.train_labels)
    loss_of = _loss_of(config, features, num_classes=len(manifest.classes))
    sampler = StepSampler(
        keys_of(samples.column("id")),
        batch_size=train.batch_size,
        num_steps=ends[-1],
        seed=config.seed,
        labels=features.train_labels[features.plain] if config.data.sampling == "balanced" else None,
    )
    lines: list[dict[str, Any]] = []
    best: tuple[tuple[int, float], int, probe.Head] | None = None
    seen_loss, seen_correct, seen = 0.0, 0, 0
    for step, batch in enumerate(sampler, start=1):
        factor = lr_factor(
            step - 1,
            kind=optim.schedule,
            total_steps=ends[-1],
            warmup_steps=round(optim.warmup_epochs * steps_per_epoch),
            step_size=optim.step_epochs * steps_per_epoch,
            gamma=optim.step_gamma,
        )
        for group, rate in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = rate * factor
        index = torch.tensor([sample * views + _view_in(epoch, config.probe.views) for sample, epoch in batch])
        logits = head(rows[index])
        losses = loss_of.of_each(logits, labels[index])
        loss_now = float(losses.detach().double().mean())
        _must_be_finite("loss", loss_now, step, config)
        optimizer.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        if optim.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(head.parameters(), optim.clip_norm)
        optimizer.step()
        with torch.no_grad():
            seen_loss += float(losses.double().sum())
            seen_correct += int((logits.argmax(dim=1) == labels[index]).sum())
        seen += len(batch)
        lines.append({"step": step, "loss": loss_now, "lr": {"head": rate * factor}})
        if step in ends:
            now = _head_of(head)
            correct, loss = _measure(now, features)
            _must_be_finite("validation loss", loss, step, config)
            epoch = ends.index(step) + 1
            lines.append(
                _epoch_line(step, epoch, seen_loss / seen, seen_correct / seen, correct, loss, len(features.val_labels))
            )
            seen_loss, seen_correct, seen = 0.0, 0, 0
            if best is None or (correct, -loss) > best[0]:
                best = (correct, -loss), epoch, now
    assert best is not None
    facts = _facts(config) | {"sampling": config.data.sampling, "steps": ends[-1]}
    facts |= {"fit_s": time.perf_counter() - started}
    return Solved(best[2], facts, lines, best_epoch=best[1], epochs=train.epochs, chosen_on_val=True)


def _view_in(epoch: int, num_views: int) -> int:
    """Which view of an image an epoch looks at: each augmented one in turn, the plain one if there are no others."""
    return 1 + epoch % num_views if num_views else 0


def _solve_by_full_batches(config: RunConfig, num_classes: int, features: BankFeatures) -> Solved:
    """Gradient steps on all rows at once; the last head is taken, so the validation images choose nothing."""
    started = time.perf_counter()
    head = _fresh_head(config, num_classes=num_classes)
    optimizer = _optimizer(head, config.optim)
    rows, labels = torch.from_numpy(features.train[:]), torch.from_numpy(features.train_labels)
    loss_of = _loss_of(config, features, num_classes=num_classes)
    lines: list[dict[str, Any]] = []
    for step in range(1, config.probe.steps + 1):
        losses = loss_of.of_each(head(rows), labels)
        loss_now = float(losses.detach().mean())
        _must_be_finite("loss", loss_now, step, config)
        optimizer.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        lines.append({"step": step, "loss": loss_now, "lr": {"head": config.optim.lr}})
    facts = _facts(config) | {"steps": config.probe.steps}
    facts |= {"fit_s": time.perf_counter() - started}
    solved = _with_epoch_line(Solved(_head_of(head), facts, lines), features, step=config.probe.steps)
    _must_be_finite("validation loss", solved.lines[-1]["val_loss"], config.probe.steps, config)
    return solved


def _must_be_finite(what: str, value: float, step: int, config: RunConfig) -> None:
    """The sentence of the loop over epochs. Nothing was written yet, so there is nothing to keep."""
    if not math.isfinite(value):
        clipping = " or set optim.clip_norm 1" if config.probe.solver == "sgd" else ""  # the others clip nothing
        raise InputError(f"the {what} became {value} at step {step}; lower optim.lr (now {config.optim.lr}){clipping}")


def _loss_of(config: RunConfig, features: BankFeatures, *, num_classes: int) -> TrainingLoss:
    return TrainingLoss.of(config.optim, features.train_labels, num_classes=num_classes, device=torch.device("cpu"))


def _fresh_head(config: RunConfig, *, num_classes: int) -> torch.nn.Linear:
    """The same start as in a run that recomputes: a function of the seed."""
    head = torch.nn.Linear(FEATURES, num_classes)
    if config.model.head_init == "zero":
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    else:
        from headstart.model import build_model

        head.load_state_dict(
            build_model(num_classes, backbone=None, head_init="normal", seed=config.seed).fc.state_dict()
        )
    return head


def _optimizer(head: torch.nn.Linear, optim: OptimConfig) -> torch.optim.Optimizer:
    from headstart.strategy import build_optimizer

    groups: list[dict[str, object]] = [
        {"params": [head.weight], "lr": optim.lr, "weight_decay": optim.weight_decay},
        {"params": [head.bias], "lr": optim.lr, "weight_decay": 0.0},
    ]
    return build_optimizer(groups, optim)


def _head_of(head: torch.nn.Linear) -> probe.Head:
    return probe.Head(head.weight.detach().double().numpy().copy(), head.bias.detach().double().numpy().copy())


def _as_stored(head: probe.Head) -> probe.Head:
    """Rounded to the float32 of the model file, so that what is measured is what is stored."""
    return probe.Head(
        head.weight.astype(np.float32).astype(np.float64), head.bias.astype(np.float32).astype(np.float64)
    )


def _measure(head: probe.Head, features: BankFeatures) -> tuple[int, float]:
    """Correct predictions and mean loss on the validation images."""
    return _tally(_predict(head, features))


def _tally(predictions: Predictions) -> tuple[int, float]:
    """Correct predictions and mean loss; nan for a head that ran away."""
    with np.errstate(invalid="ignore"):
        return predictions.correct, log_loss(predictions.probabilities, predictions.labels)


def _predict(head: probe.Head, features: BankFeatures) -> Predictions:
    rows = features.val[:]
    return Predictions(_logits(head, rows), features.val_labels, rows)


def _logits(head: probe.Head, features: probe.Features) -> np.ndarray:
    """(n, C) float32; inf where a head ran away, so that its loss is not finite, which is said."""
    with np.errstate(over="ignore"):
        return head.logits(features).astype(np.float32)


def _with_epoch_line(solved: Solved, features: BankFeatures, *, step: int) -> Solved:
    """The line of metrics.jsonl that an epoch has, once, at the end."""
    train_correct, train_loss = _tally(Predictions(_logits(solved.head, features.train), features.train_labels))
    correct, loss = _measure(solved.head, features)
    train_accuracy = train_correct / len(features.train_labels)
    line = _epoch_line(step, 1, train_loss, train_accuracy, correct, loss, len(features.val_labels))
    return replace(solved, lines=[*solved.lines, line])


def _epoch_line(
    step: int, epoch: int, train_loss: float, train_accuracy: float, correct: int, loss: float, count: int
) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "val_loss": loss,
        "val_correct": correct,
        "val_n": count,
        "val_accuracy": correct / count,
    }


def _write(
    config: RunConfig,
    accelerator: Accelerator,
    views: Sequence[BankView],
    manifest: Manifest,
    weights: Weights,
    spec: Preprocess,
    features: BankFeatures,
    solved: Solved,
    companion: Companion,
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
    _draw_views(folder, config, manifest, views)
    trackers = Trackers(accelerator, trackers_asked, path, config.runtime, asdict(config), step=0)
    folder.also_tell = trackers.record
    trackers.picture("training images", path / "train_views.png", step=0)
    for line in solved.lines:
        folder.log(line)
    predictions = _predict(solved.head, features)
    values = describe(predictions, manifest.classes, measure=companion.measure)
    _begin_curves(folder, solved, companion)
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
    backbone, _ = _backbone(config, weights)
    tensors = {**backbone, "fc.weight": torch.from_numpy(solved.head.weight).float(),
               "fc.bias": torch.from_numpy(solved.head.bias).float()}  # fmt: skip
    save_model_tensors(folder.model_file, tensors, replace(info, golden=record_golden(info, tensors)))
    write_predictions(folder, manifest, predictions)
    draw_predictions(folder, manifest, predictions, spec)
    known = features.train_labels[features.plain]
    nearest = probe.knn_accuracy(features.train.only(features.plain), known, features.val, features.val_labels)
    among = len(known[probe.neighbours(len(known))])
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
    companion.wait()
    summary["wall_s"] = time.perf_counter() - started
    folder.write_json("summary.json", summary)
    running.end()
    trackers.finish(folder.model_file, summary)
    sampled = f", among {among} of the {len(known)} training images" if among < len(known) else ""
    accelerator.print(f"5 nearest neighbours on the same features{sampled}: accuracy {nearest:.1%}".replace("%", " %"))
    say_result(accelerator, values, _in_words(solved), wall_s=summary["wall_s"], path=path)
    return path


def _begin_curves(folder: RunFolder, solved: Solved, companion: Companion) -> None:
    chosen = [line for line in solved.lines if "cv_loss" in line]
    if chosen:
        companion.draw_selection(
            folder.path / "curves.png",
            l2=[line["l2"] for line in chosen],
            losses=[line["cv_loss"] for line in chosen],
            errors=[line["cv_loss_se"] for line in chosen],
            accuracies=[line["cv_accuracy"] for line in chosen],
            chosen=solved.facts["l2"],
        )
    else:
        companion.draw_curves(folder.path / "curves.png", [line for line in solved.lines if "epoch" in line])


def _draw_views(folder: RunFolder, config: RunConfig, manifest: Manifest, views: Sequence[BankView]) -> None:
    """Training images in the first augmented view, or in the plain one if there is no other."""
    from headstart.pictures import image_grid

    samples = manifest.of("train")
    view = views[min(1, len(views) - 1)]
    order = epoch_order(keys_of(samples.column("id")), seed=config.seed, epoch=0)
    picked = [samples[int(index)] for index in order[:12]]
    images = [view.pixels(sample.sha256, partial(_load, view.view, manifest.source, sample.path)) for sample in picked]
    image_grid(folder.path / "train_views.png", images, [sample.label for sample in picked])


def _load(view: View, source: Source, path: str) -> Image.Image:
    return view.decode(source.read(path))


def _resolve(config: RunConfig, accelerator: Accelerator, *, threads: int) -> RunConfig:
    """The configuration with every choice that was left to us made, and said in one line."""
    precision, why = choose_precision(config.runtime.mixed_precision, accelerator.device)
    runtime = replace(config.runtime, mixed_precision=precision)  # type: ignore[arg-type]
    data = replace(config.data, resize_size=Preprocess.of(config.data).resize_size)
    count = accelerator.num_processes
    accelerator.print(
        f"{count} process{'es' if count > 1 else ''} on {accelerator.device.type}, {precision} ({why}), "
        f"{threads} thread{'s' if threads > 1 else ''} each, head by {config.probe.solver} on the feature bank"
    )
    return replace(config, runtime=runtime, data=data)


def _choose(config: RunConfig) -> Path:
    path = choose_folder(config.out, strategy=config.strategy.name)
    if config.train.resume != "auto" or not is_unfinished(path):
        check_new_folder(path)
    return path


def _backbone(config: RunConfig, weights: Weights) -> tuple[dict[str, torch.Tensor], str]:
    """The frozen tensors and what identifies them."""
    if weights.tensors is not None:
        assert weights.sha256 is not None
        return weights.tensors, weights.sha256
    from headstart.model import build_model

    random = build_model(2, backbone=None, head_init="zero", seed=config.seed).state_dict()
    tensors = {name: value for name, value in random.items() if not name.startswith("fc.")}
    return tensors, f"random, seed {config.seed}"


def describe_extraction(extraction: Extraction, bank: Bank) -> str:
    line = f"features: {extraction.wanted - extraction.computed} from the bank {bank.path}"
    if extraction.computed:
        rate = extraction.computed / extraction.seconds
        line += f", {extraction.computed} computed in {extraction.seconds:.1f} s, {rate:.0f} img/s"
    return line


def _in_words(solved: Solved) -> str:
    if solved.facts["solver"] == "lbfgs":
        return f"l2 {solved.facts['l2']:.3g}, gradient {solved.facts['gradient_norm']:.0e}"
    if solved.chosen_on_val:
        return f"epoch {solved.best_epoch} of {solved.epochs}"
    return f"after {solved.facts['steps']} steps"
