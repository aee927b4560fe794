"""The head on stored features: exact, by minibatches as the loop would, or by full batches as in the tch-rs tutorial."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from headstart.config import OptimConfig, ProbeConfig, RunConfig
from headstart.data.samples import Manifest
from headstart.data.sampling import StepSampler, epoch_ends, keys_of
from headstart.errors import InputError
from headstart.evaluation.predictions import Predictions
from headstart.evaluation.statistics import log_loss
from headstart.features import logistic_regression
from headstart.features.training_set import BankFeatures
from headstart.model.frozen_trunk import FEATURES
from headstart.recipe.class_weights import class_weights
from headstart.recipe.loss import TrainingLoss, logit_offsets
from headstart.recipe.schedule import lr_factor

SELECTION_IMAGES = 20_000  # cross-validation looks at no more images than this


@dataclass(frozen=True)
class Solved:
    """A head, what the run folder says of how it was found, and its lines of metrics.jsonl.

    chosen_on_val: whether the validation images chose among several heads; out_of_fold: logits and labels of training
    images, by heads that did not see them."""

    head: logistic_regression.Head
    facts: dict[str, Any]
    lines: list[dict[str, Any]]
    best_epoch: int = 1
    epochs: int = 1
    chosen_on_val: bool = False
    out_of_fold: tuple[np.ndarray, np.ndarray] | None = None


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
        "augmented_copies": config.probe.augmented_copies,
        "class_weights": config.optim.class_weights,
        "logit_adjustment": config.optim.logit_adjustment,
    }


def _solve_exactly(config: RunConfig, num_classes: int, features: BankFeatures) -> Solved:
    started = time.perf_counter()
    copies = len(features.plain) // int(features.plain.sum())
    weights = np.ones(len(features.train_labels))
    if config.optim.class_weights == "balanced":
        weights = class_weights(features.train_labels, num_classes=num_classes)
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
    found = logistic_regression.fit(
        features.train, features.train_labels, num_classes=num_classes, l2=l2 * copies, weights=weights
    )
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
) -> logistic_regression.CrossValidation:
    """By stratified k-fold cross-validation over images; at most SELECTION_IMAGES of them, evenly taken."""
    copies = len(features.plain) // int(features.plain.sum())
    smallest = int(np.bincount(features.train_labels[features.plain], minlength=num_classes).min())
    if smallest < 2:
        raise InputError(
            "a class has a single training image, so probe.l2 cannot be chosen by cross-validation; set it"
        )
    folds = min(config.folds, smallest)
    step = -(-int(features.plain.sum()) // SELECTION_IMAGES)
    used = np.arange(len(features.train_labels)) // copies % step == 0
    labels = features.train_labels[used]
    owners = [owner for owner, take in zip(features.owners, used, strict=True) if take]
    return logistic_regression.cross_validate(
        features.train[used],
        labels,
        logistic_regression.stratified_folds(owners, labels, folds=folds, seed=seed),
        num_classes=num_classes,
        weights=weights[used],
        counted=features.plain[used],
        one_standard_error=config.one_standard_error,
        rows_per_image=copies,
    )


def _solve_by_epochs(config: RunConfig, manifest: Manifest, features: BankFeatures) -> Solved:
    """The tutorials' minibatches on stored features: sample order, schedule and optimizer are those of the loop."""
    started = time.perf_counter()
    samples, train, optim = manifest.of("train"), config.train, config.optim
    if train.batch_size > len(samples):
        raise InputError(
            f"train.batch_size {train.batch_size} exceeds the {len(samples)} training images; use at most {len(samples)}"
        )
    copies = config.probe.augmented_copies + 1
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
    best: tuple[tuple[int, float], int, logistic_regression.Head] | None = None
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
        index = torch.tensor(
            [sample * copies + _copy_in(epoch, config.probe.augmented_copies) for sample, epoch in batch]
        )
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
    return Solved(best[2], facts, lines, best_epoch=best[1], epochs=train.epochs, chosen_on_val=train.epochs > 1)


def _copy_in(epoch: int, augmented_copies: int) -> int:
    """Which copy of an image an epoch uses: each augmented one in turn, the plain one if there are no others."""
    return 1 + epoch % augmented_copies if augmented_copies else 0


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
        from headstart.model.classifier import build_model

        head.load_state_dict(
            build_model(num_classes, backbone=None, head_init="normal", seed=config.seed).fc.state_dict()
        )
    return head


def _optimizer(head: torch.nn.Linear, optim: OptimConfig) -> torch.optim.Optimizer:
    from headstart.recipe.parameter_groups import build_optimizer

    groups: list[dict[str, object]] = [
        {"params": [head.weight], "lr": optim.lr, "weight_decay": optim.weight_decay},
        {"params": [head.bias], "lr": optim.lr, "weight_decay": 0.0},
    ]
    return build_optimizer(groups, optim)


def _head_of(head: torch.nn.Linear) -> logistic_regression.Head:
    return logistic_regression.Head(
        head.weight.detach().double().numpy().copy(), head.bias.detach().double().numpy().copy()
    )


def _as_stored(head: logistic_regression.Head) -> logistic_regression.Head:
    """Rounded to the float32 of the model file, so that what is measured is what is stored."""
    return logistic_regression.Head(
        head.weight.astype(np.float32).astype(np.float64), head.bias.astype(np.float32).astype(np.float64)
    )


def _measure(head: logistic_regression.Head, features: BankFeatures) -> tuple[int, float]:
    """Correct predictions and mean loss on the validation images."""
    return _tally(predictions_of(head, features))


def _tally(predictions: Predictions) -> tuple[int, float]:
    """Correct predictions and mean loss; nan for a head that ran away."""
    with np.errstate(invalid="ignore"):
        return predictions.correct, log_loss(predictions.probabilities, predictions.labels)


def predictions_of(head: logistic_regression.Head, features: BankFeatures) -> Predictions:
    rows = features.val[:]
    return Predictions(_logits(head, rows), features.val_labels, rows)


def _logits(head: logistic_regression.Head, features: logistic_regression.Features) -> np.ndarray:
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
