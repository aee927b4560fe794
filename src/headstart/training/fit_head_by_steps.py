"""Fit a head on cached features with the training loop, by minibatches or full batches, as the two tutorials do."""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from headstart.config import RunConfig
from headstart.data.samples import Manifest
from headstart.data.sampling import StepSampler, epoch_ends, keys_of
from headstart.errors import InputError
from headstart.features.logistic_regression import Head
from headstart.features.training_set import BankFeatures
from headstart.recipe.loss import TrainingLoss
from headstart.recipe.optimizer import build_optimizer, lr_schedule
from headstart.runs.progress import TrainingProgress
from headstart.runtime.processes import on_main
from headstart.runtime.signals import StopRequest
from headstart.training.fitted_head import FittedHead, predict_val
from headstart.training.log import TrainingLog
from headstart.training.loop import Batch, fit
from headstart.training.state import TrainingState


def fit_by_steps(accelerator: Accelerator, config: RunConfig, manifest: Manifest, features: BankFeatures) -> FittedHead:
    """With the training loop: minibatches in the order of a run on images, or `probe.steps` steps on all rows at once.

    Every process does all of it: a head is small. Nothing is written; the lines and the best head are kept in memory.
    """
    optim, num_classes, full = config.optim, len(manifest.classes), config.probe.solver == "full_batch"
    if full:
        ends, schedule = [config.probe.steps], lambda step: 1.0
    else:
        count, size = len(manifest.of("train")), config.train.batch_size
        if size > count:
            raise InputError(f"train.batch_size {size} exceeds the {count} training images; use at most {count}")
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
    epochs = 1 if full else config.train.epochs
    details: dict[str, Any] = {"steps": ends[-1]} if full else {"sampling": config.data.sampling, "steps": ends[-1]}
    return FittedHead(head, details, lines, state.best_epoch, epochs, chosen_on_val=epochs > 1)


class _LinearHead(nn.Linear):
    """In float32, whatever the precision of the backbone."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float32 (n, width) -> (n, num_classes)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features)


def _new_head(config: RunConfig, *, width: int, num_classes: int) -> _LinearHead:
    """The head that a run on images starts from: a function of the seed."""
    head = _LinearHead(width, num_classes)
    if config.model.head_init == "zero":
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    else:
        from headstart.model.network import build_model

        model = build_model(num_classes, backbone=None, head_init=config.model.head_init, seed=config.seed)
        head.load_state_dict(model.fc.state_dict())
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
