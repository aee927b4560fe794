"""The training loop: one optimizer step after another until the last epoch ends."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from headstart.evaluation.predictions import Predictions
from headstart.recipe.loss import TrainingLoss
from headstart.runtime.processes import agree
from headstart.runtime.signals import StopRequest
from headstart.training.log import StepResult, TrainingLog
from headstart.training.state import TrainingState

FLUSH_STEPS = 10  # steps between two transfers of the losses from the device,
FLUSH_S = 2.0  # or seconds, whichever comes first

Batch = dict[str, Any]
"""At least "label": int64 (n,); the rest is for `inputs`."""


def fit(
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    batches: Iterable[Batch],
    *,
    accelerator: Accelerator,
    state: TrainingState,
    epoch_ends: Sequence[int],
    inputs: Callable[[Batch], torch.Tensor],
    loss_fn: TrainingLoss,
    evaluate: Callable[[], Predictions],
    log: TrainingLog,
    stop: StopRequest,
    accumulation: int = 1,
    clip_norm: float | None = None,
    checkpoint_steps: int = 0,
    checkpoint_s: float = 0.0,
) -> float:
    """Train from step `state.step` to the last of `epoch_ends`; the same for every strategy and number of processes.

    model, optimizer, scheduler, batches: as Accelerate prepared them. A step takes `accumulation` batches.
    state: updated in place. epoch_ends: number of steps done when each epoch ends. inputs: from a batch
    to what the model takes. evaluate: predictions of the model on the validation samples.
    checkpoint_steps, checkpoint_s: steps and seconds between checkpoints, 0 for none.

    Returns the seconds spent on training steps. Raises Stopped once a requested stop is saved, and what `log` raises.
    """
    stream, pending, train_s = iter(batches), list[StepResult](), 0.0
    saved_at = epoch_began = began = time.perf_counter()
    if state.step in epoch_ends and state.epochs_evaluated <= epoch_ends.index(state.step):
        # `evaluate` was stopped: the checkpoint is of the last step of an epoch, before its evaluation
        log.epoch(evaluate(), seconds=time.perf_counter() - epoch_began)
        epoch_began = began = time.perf_counter()
    while state.step < epoch_ends[-1]:
        result = train_step(
            model,
            optimizer,
            scheduler,
            stream,
            accelerator=accelerator,
            steps_done=state.step,
            inputs=inputs,
            loss_fn=loss_fn,
            accumulation=accumulation,
            clip_norm=clip_norm,
        )
        state.step = result.step
        pending.append(result)
        log.step_done(result)
        epoch_ended, now = state.step in epoch_ends, time.perf_counter()
        stopping, save_due, flush_due = agree(
            accelerator, stop.signal_name is not None, 0 < checkpoint_s < now - saved_at, now - began > FLUSH_S
        )
        save_due |= bool(checkpoint_steps) and state.step % checkpoint_steps == 0
        saving = (stopping or save_due) and state.step < epoch_ends[-1]  # after the last step the run ends anyway
        if epoch_ended or saving or flush_due or len(pending) == FLUSH_STEPS:
            log.flush(pending, seconds=time.perf_counter() - began)
            pending = []
            train_s, began = train_s + time.perf_counter() - began, time.perf_counter()
        if epoch_ended:
            log.epoch(evaluate(), seconds=time.perf_counter() - epoch_began)
            epoch_began = began = time.perf_counter()
        if saving:
            log.save()
            saved_at = began = time.perf_counter()
            if stopping:
                raise log.stopped(stop.signal_name)
    return train_s


def train_step(
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    stream: Iterator[Batch],
    *,
    accelerator: Accelerator,
    steps_done: int,
    inputs: Callable[[Batch], torch.Tensor],
    loss_fn: TrainingLoss,
    accumulation: int,
    clip_norm: float | None,
) -> StepResult:
    """One optimizer step on the next `accumulation` batches of the stream; arguments as in `fit`."""
    model.train()
    # MPS has no float64
    sums = torch.zeros(3, dtype=torch.float64, device="cpu" if accelerator.device.type == "mps" else accelerator.device)
    for _ in range(accumulation):
        batch = next(stream)
        with accelerator.accumulate(model):
            logits = model(inputs(batch))
            loss = loss_fn(logits, batch["label"])
            accelerator.backward(loss)
            if clip_norm is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip_norm)
            rates = scheduler.get_last_lr()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == batch["label"]).sum()
            size = len(batch["label"])
            sums += torch.stack([loss.detach() * size, correct, torch.tensor(size, device=loss.device)]).to(sums)
    if accelerator.optimizer_step_was_skipped:
        # the scaler of fp16 found inf or nan: Accelerate does not advance the schedule then, but here the learning rate
        # is a function of the step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects a step of the optimizer before, and there was none
            scheduler.scheduler.step()
    return StepResult(steps_done + 1, rates, sums)
