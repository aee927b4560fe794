"""The training loop: one optimizer step after another until the last epoch ends."""

import time
import warnings
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from headstart.data.transforms import Preprocess
from headstart.evaluation.predictions import Predictions
from headstart.recipe.loss import TrainingLoss
from headstart.recipe.schedule import image_size_at
from headstart.runtime.processes import agree
from headstart.runtime.signals import StopRequest
from headstart.training.recorder import Record, Tally

FLUSH_STEPS = 10  # steps between two readings of the losses from the device,
FLUSH_S = 2.0  # or seconds, whichever comes first


def fit(
    record: Record,
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    batches: Any,
    *,
    loss_of: TrainingLoss,
    spec: Preprocess,
    ends: list[int],
    measure_epoch: Callable[[], Predictions],
    pixels_of: Callable[[Any], torch.Tensor] = itemgetter("pixels"),
    stop: StopRequest,
) -> float:
    """The loop over optimizer steps, the same for every strategy and number of processes; record.state moves along.

    model, optimizer, scheduler, batches: as Accelerate prepared them. Returns the seconds spent on training steps.
    Raises Stopped once a requested stop is saved, InputError if the loss is not finite.
    """
    accelerator, config, state = record.accelerator, record.config, record.state
    layout = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
    stream: Iterator[Any] = iter(batches)
    unread: list[Tally] = []
    names = [group["name"] for group in optimizer.param_groups]
    train_s, entered, epoch_entered = 0.0, time.perf_counter(), time.perf_counter()
    saved_at = time.perf_counter()
    every_steps, every_s = config.train.checkpoint_steps, config.train.checkpoint_minutes * 60

    def save_checkpoint() -> None:
        nonlocal saved_at
        record.position(optimizer)
        saved_at = time.perf_counter()

    def end_epoch() -> None:
        nonlocal epoch_entered
        predictions = measure_epoch()
        now = time.perf_counter()
        spent_s, epoch_entered = now - epoch_entered, now
        record.epoch(predictions, spent_s=spent_s)

    if state.step in ends and state.epochs_measured <= ends.index(state.step):
        end_epoch()  # the run was stopped between the last step of an epoch and the end of its measurement
    while state.step < ends[-1]:
        model.train()
        tally = torch.zeros(3, dtype=torch.float64, device=_float64_device(accelerator))
        for _ in range(config.train.accumulation):
            batch = next(stream)
            with accelerator.accumulate(model):
                pixels = spec.normalize(pixels_of(batch).contiguous(memory_format=layout))
                if config.train.first_image_size is not None:
                    pixels = _shrink(
                        pixels, state.step, total_steps=ends[-1], first_image_size=config.train.first_image_size
                    )
                logits = model(pixels)
                loss = loss_of(logits, batch["label"])
                accelerator.backward(loss)
                if config.optim.clip_norm is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
                rates = scheduler.get_last_lr()
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            with torch.no_grad():
                correct = (logits.argmax(dim=1) == batch["label"]).sum()
                size = len(batch["label"])
                tally += torch.stack([loss.detach() * size, correct, torch.tensor(size, device=loss.device)]).to(tally)
        if accelerator.optimizer_step_was_skipped:
            # by the scaler: Accelerate's scheduler waits, but a rate is a function of the step
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch would have the optimizer's step first, and there was none
                scheduler.scheduler.step()
        state.step += 1
        unread.append(Tally(state.step, rates, tally))
        if accelerator.device.type == "cpu":  # elsewhere it would wait for the device; they are told when they are read
            record.progress.seen(*tally.tolist())
        record.progress.step_done()
        at_end = state.step in ends
        now = time.perf_counter()
        stopping, long_ago, unread_long = agree(
            accelerator,
            stop.signal_name is not None,
            every_s > 0 and now - saved_at > every_s,
            now - entered > FLUSH_S,
        )
        due = state.step < ends[-1] and (stopping or long_ago or (every_steps and state.step % every_steps == 0))
        if at_end or due or unread_long or len(unread) == FLUSH_STEPS:
            spent_s = time.perf_counter() - entered
            record.losses(unread, names=names, spent_s=spent_s)
            unread.clear()
            train_s, entered = train_s + time.perf_counter() - entered, time.perf_counter()
        if at_end:
            end_epoch()
        if due:
            save_checkpoint()
        if due and stopping:
            raise record.stopped(stop.signal_name, total_steps=ends[-1])
        entered = time.perf_counter() if at_end or due else entered
    return train_s


def _shrink(pixels: torch.Tensor, step: int, *, total_steps: int, first_image_size: int) -> torch.Tensor:
    """float (n, 3, S, S) -> the same images at the size of this step."""
    size = image_size_at(step, total_steps=total_steps, first=first_image_size, last=pixels.shape[-1])
    if size == pixels.shape[-1]:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _float64_device(accelerator: Accelerator) -> torch.device:
    """Where the sums are kept: on the device, but on the CPU for MPS, which has no float64."""
    return torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device
