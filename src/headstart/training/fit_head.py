"""Fit a head on cached features with the configured solver. The exact solver (lbfgs) is in this file."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate import Accelerator

from headstart.config import ProbeConfig, RunConfig
from headstart.data.samples import Manifest
from headstart.errors import InputError
from headstart.evaluation.predictions import Predictions
from headstart.features import logistic_regression
from headstart.features.cross_validation import CrossValidation, cross_validate, stratified_folds
from headstart.features.logistic_regression import Head
from headstart.features.training_set import BankFeatures
from headstart.recipe.class_weights import class_weights
from headstart.recipe.loss import logit_offsets
from headstart.runtime.processes import on_main
from headstart.training.fit_head_by_steps import fit_by_steps
from headstart.training.fitted_head import FittedHead, head_logits, predict_val
from headstart.training.log import validation_metrics

SELECTION_IMAGES = 20_000  # cross-validation uses at most this many images


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
    l2, out_of_fold = config.probe.l2, None
    if l2 is None:
        chosen = _choose_l2(config.probe, num_classes, features, weights, seed=config.seed)
        l2, out_of_fold = chosen.l2, (chosen.logits, chosen.labels)
        details["l2_chosen_by"] = f"{chosen.folds}-fold cross-validation"
        rows = zip(chosen.grid, chosen.losses, chosen.loss_errors, chosen.accuracies, strict=True)
        for strength, loss, error, accuracy in rows:
            lines.append({"step": 0, "l2": strength, "cv_loss": loss, "cv_loss_se": error, "cv_accuracy": accuracy})
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
    details |= {
        "l2": l2,
        "objective": found.objective,
        "gradient_norm": found.gradient_norm,
        "iterations": found.iterations,
        "converged": found.converged,
    }
    return FittedHead(head, details, lines, out_of_fold=out_of_fold)


def _choose_l2(
    config: ProbeConfig, num_classes: int, features: BankFeatures, weights: np.ndarray, *, seed: int
) -> CrossValidation:
    """By stratified k-fold cross-validation over images; at most SELECTION_IMAGES of them, evenly spaced."""
    copies = len(features.plain) // int(features.plain.sum())
    smallest = int(np.bincount(features.train_labels[features.plain], minlength=num_classes).min())
    if smallest < 2:
        raise InputError("a class has only one training image, so cross-validation cannot choose probe.l2; set it")
    spacing = -(-int(features.plain.sum()) // SELECTION_IMAGES)
    used = np.arange(len(features.train_labels)) // copies % spacing == 0
    labels = features.train_labels[used]
    owners = [owner for owner, take in zip(features.owners, used, strict=True) if take]
    folds = min(config.folds, smallest)
    return cross_validate(
        features.train[used],
        labels,
        stratified_folds(owners, labels, folds=folds, seed=seed),
        num_classes=num_classes,
        weights=weights[used],
        counted=features.plain[used],
        rows_per_image=copies,
    )
