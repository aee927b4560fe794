"""Fit a head on cached features: exactly (lbfgs), or with the training loop by minibatches or full batches, as the two
tutorials do."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from headstart.config import ProbeConfig, RunConfig
from headstart.data.samples import Manifest
from headstart.data.sampling import StepSampler, epoch_ends, keys_of
from headstart.evaluation.predictions import Predictions
from headstart.features import logistic_regression
from headstart.features.cross_validation import NEVER_HELD_OUT, CrossValidation, cross_validate, stratified_folds
from headstart.features.logistic_regression import Head
from headstart.features.training_set import BankFeatures
from headstart.recipe.class_weights import class_weights
from headstart.recipe.loss import TrainingLoss, logit_offsets
from headstart.recipe.optimizer import build_optimizer, lr_schedule
from headstart.runs.progress import TrainingProgress
from headstart.runtime.processes import on_main
from headstart.runtime.signals import StopRequest
from headstart.training.log import TrainingLog, validation_metrics
from headstart.training.loop import Batch, fit
from headstart.training.state import TrainingState
from headstart.wording import plural

SELECTION_IMAGES = 20_000  # cross-validation uses at most this many images
DEFAULT_L2 = 1000.0  # where no class has two training images to choose it with


@dataclass(frozen=True)
class FittedHead:
    """details: how it was fitted, for the summary; lines: of metrics.jsonl; epochs: among whose heads the validation
    images chose; out_of_fold: logits and labels of training images, by heads that were not fitted on them."""

    head: Head
    details: dict[str, Any]
    lines: list[dict[str, Any]]
    best_epoch: int = 1
    epochs: int = 1
    out_of_fold: tuple[np.ndarray, np.ndarray] | None = None

    def __str__(self) -> str:
        if self.details["solver"] == "lbfgs":
            return f"l2 {self.details['l2']:.3g}, converged (gradient {self.details['gradient_norm']:.0e})"
        if self.epochs > 1:
            return f"epoch {self.best_epoch} of {self.epochs}"
        return f"after {plural(self.details['steps'], 'step')}"


def fit_head(accelerator: Accelerator, config: RunConfig, manifest: Manifest, features: BankFeatures) -> FittedHead:
    """The head by the configured solver, the same in all processes. Raises InputError if it cannot be fitted."""
    started = time.perf_counter()
    num_classes = len(manifest.classes)
    details = {
        "solver": config.probe.solver,
        "augmented_copies": config.probe.augmented_copies,
        "class_weights": config.optim.class_weights,
        "logit_adjustment": config.optim.logit_adjustment,
    }
    if config.data.sampling == "balanced" and config.probe.solver != "sgd":
        # nothing is drawn where every step uses all rows; the expected loss of balanced draws is the weighted one
        config = replace(
            config,
            data=replace(config.data, sampling="natural"),
            optim=replace(config.optim, class_weights="balanced"),
        )
        details["class_weights"] = "balanced"
    if config.probe.solver == "lbfgs":
        fitted = on_main(accelerator, lambda: _fit_exactly(config, num_classes, features))
    else:
        fitted = fit_by_steps(accelerator, config, manifest, features)
    return replace(fitted, details=details | fitted.details | {"fit_s": time.perf_counter() - started})


def _fit_exactly(config: RunConfig, num_classes: int, features: BankFeatures) -> FittedHead:
    """The optimum of multinomial logistic regression; its L2 strength by cross-validation unless it is set."""
    copies = len(features.plain) // int(features.plain.sum())
    weights = np.ones(len(features.train_labels))
    if config.optim.class_weights == "balanced":
        weights = class_weights(features.train_labels, num_classes=num_classes)
    details: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    l2, out_of_fold, chosen = config.probe.l2, None, None
    if l2 is None:
        chosen = _choose_l2(config.probe, num_classes, features, weights, seed=config.seed)
        l2, details["l2_chosen_by"] = DEFAULT_L2, "default, as no class has two training images"
    if chosen is not None:
        l2, out_of_fold = chosen.l2, (chosen.logits, chosen.labels)
        details["l2_chosen_by"] = f"{chosen.folds}-fold cross-validation"
        for row in zip(chosen.grid, chosen.losses, chosen.loss_errors, chosen.accuracies, strict=True):
            lines.append({"step": 0} | dict(zip(("l2", "cv_loss", "cv_loss_se", "cv_accuracy"), row, strict=True)))
    # all copies of an image count together as one image, so that l2 means the same for any number of copies
    found = logistic_regression.fit(
        features.train, features.train_labels, num_classes=num_classes, l2=l2 * copies, weights=weights
    )
    head = found.head
    if config.optim.logit_adjustment:
        # the intercept is free: the optimum of the loss with offsets is the one without them, minus the offsets,
        # and the losses of the cross-validation are the same
        offsets = logit_offsets(config.optim, features.train_labels, num_classes=num_classes)
        head = replace(head, bias=head.bias - offsets)
        if out_of_fold is not None:
            out_of_fold = out_of_fold[0] - offsets, out_of_fold[1]
    head = Head(*(value.astype(np.float32).astype(np.float64) for value in (head.weight, head.bias)))  # as in the file
    train = validation_metrics(Predictions(head_logits(head, features.train), features.train_labels))
    lines.append(
        {"step": found.iterations, "epoch": 1, "train_loss": train["val_loss"], "train_accuracy": train["val_accuracy"]}
        | validation_metrics(predict_val(head, features))
    )
    details |= {"l2": l2}
    details |= {name: getattr(found, name) for name in ("objective", "gradient_norm", "iterations", "converged")}
    return FittedHead(head, details, lines, out_of_fold=out_of_fold)


def _choose_l2(
    config: ProbeConfig, num_classes: int, features: BankFeatures, weights: np.ndarray, *, seed: int
) -> CrossValidation | None:
    """By stratified k-fold cross-validation over images; at most SELECTION_IMAGES of them, evenly spaced. The image of
    a class that has only one is never held out. None if there is no other class."""
    copies = len(features.plain) // int(features.plain.sum())
    counts = np.bincount(features.train_labels[features.plain], minlength=num_classes)
    if counts.max() < 2:
        return None
    smallest = int(counts[counts > 1].min())
    spacing = -(-int(features.plain.sum()) // SELECTION_IMAGES)
    used = np.arange(len(features.train_labels)) // copies % spacing == 0
    labels = features.train_labels[used]
    owners = [owner for owner, take in zip(features.owners, used, strict=True) if take]
    folds = stratified_folds(owners, labels, folds=min(config.folds, smallest), seed=seed)
    held_out = counts[labels] > 1
    return cross_validate(
        features.train[used],
        labels,
        np.where(held_out, folds, NEVER_HELD_OUT),
        num_classes=num_classes,
        weights=weights[used],
        counted=features.plain[used] & held_out,
        rows_per_image=copies,
    )


def fit_by_steps(accelerator: Accelerator, config: RunConfig, manifest: Manifest, features: BankFeatures) -> FittedHead:
    """With the training loop: minibatches in the order of a run on images, or `probe.steps` steps on all rows at once.

    Every process does all of it: a head is small. Nothing is written; the lines and the best head are kept in memory.
    """
    optim, num_classes, full = config.optim, len(manifest.classes), config.probe.solver == "full_batch"
    if full:
        ends, schedule = [config.probe.steps], lambda step: 1.0
    else:
        count, size = len(manifest.of("train")), config.train.batch_size
        ends = epoch_ends(num_samples=count, batch_size=size, epochs=config.train.epochs)
        schedule = lr_schedule(optim, total_steps=ends[-1], steps_per_epoch=count / size)
    bare = _new_head(config, width=features.train.shape[1], num_classes=num_classes)
    groups: list[dict[str, Any]] = [
        {"name": "head_decay", "params": [bare.weight], "lr": optim.lr, "weight_decay": optim.weight_decay},
        {"name": "head_no_decay", "params": [bare.bias], "lr": optim.lr, "weight_decay": 0.0},
    ]
    # in evaluation mode, so that Accelerate places the head on the device and does not average it over processes
    model = accelerator.prepare_model(bare, evaluation_mode=True)
    optimizer = accelerator.prepare_optimizer(build_optimizer(groups, optim))
    scheduler = accelerator.prepare_scheduler(torch.optim.lr_scheduler.LambdaLR(optimizer, schedule))
    lines: list[dict[str, Any]] = []
    best: list[Head] = []
    state = TrainingState()
    log = TrainingLog(
        accelerator,
        config,
        state,
        [group["name"] for group in groups],
        TrainingProgress(ends=ends, start_step=0, batch_size=1, style="silent"),
        folder=None,
        write=lines.append,
        keep_best=lambda metrics: best.append(_float64_head(bare)),
    )
    fit(
        model,
        optimizer,
        scheduler,
        _batches(accelerator, config, manifest, features, num_steps=ends[-1]),
        accelerator=accelerator,
        state=state,
        epoch_ends=ends,
        inputs=lambda batch: batch["features"],
        loss_fn=TrainingLoss.of(optim, features.train_labels, num_classes=num_classes, device=accelerator.device),
        evaluate=lambda: predict_val(_float64_head(bare), features),
        log=log,
        stop=StopRequest(),
        accumulation=accelerator.gradient_accumulation_steps,
        clip_norm=None if full else optim.clip_norm,
    )
    head: Head = on_main(accelerator, lambda: best[-1])
    details: dict[str, Any] = {} if full else {"sampling": config.data.sampling}
    return FittedHead(head, details | {"steps": ends[-1]}, lines, state.best_epoch, len(ends))


class _LinearHead(nn.Linear):
    """In float32, whatever the precision of the backbone."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features)


def _new_head(config: RunConfig, *, width: int, num_classes: int) -> _LinearHead:
    """The head that a run on images starts from: a function of the seed."""
    head = _LinearHead(width, num_classes)
    if config.model.head_init == "zero":
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    else:
        from headstart.model.backbones import find_backbone
        from headstart.model.build import build_model

        backbone = find_backbone(config.model.backbone)
        model = build_model(backbone, num_classes, tensors=None, head_init=config.model.head_init, seed=config.seed)
        head.load_state_dict(model.head_layer.state_dict())
    return head


def _batches(
    accelerator: Accelerator, config: RunConfig, manifest: Manifest, features: BankFeatures, *, num_steps: int
) -> Iterator[Batch]:
    """{"features": float32 (n, width), "label": int64 (n,)} on the device, without end for full batches."""
    rows, labels = (
        torch.from_numpy(array).to(accelerator.device) for array in (features.train[:], features.train_labels)
    )
    if config.probe.solver == "full_batch":
        yield from repeat({"features": rows, "label": labels})
    copies = config.probe.augmented_copies
    sampler = StepSampler(
        keys_of(manifest.of("train").column("id")),
        batch_size=config.train.batch_size,
        num_steps=num_steps,
        seed=config.seed,
        accumulation=accelerator.gradient_accumulation_steps,
        labels=features.train_labels[features.plain] if config.data.sampling == "balanced" else None,
    )
    for batch in sampler:
        # an epoch uses one augmented copy of each image, the next epoch the next copy; the plain image if there is none
        index = torch.tensor([i * (copies + 1) + (1 + epoch % copies if copies else 0) for i, epoch in batch])
        index = index.to(accelerator.device)
        yield {"features": rows[index], "label": labels[index]}


def _float64_head(head: nn.Linear) -> Head:
    return Head(*(value.detach().double().cpu().numpy().copy() for value in (head.weight, head.bias)))


def predict_val(head: Head, features: BankFeatures) -> Predictions:
    """The validation images; logits are computed in float64 and rounded to float32."""
    rows = features.val[:]
    return Predictions(head_logits(head, rows), features.val_labels, rows)


def head_logits(head: Head, features: logistic_regression.Features) -> np.ndarray:
    """(n, C) float32; inf where a head diverged, so that its loss is not finite, which is an error."""
    with np.errstate(over="ignore"):
        return head.logits(features).astype(np.float32)
