"""What the training loop reports: losses, epochs, and which epoch is the best so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from headstart.config import RunConfig
from headstart.errors import InputError, Stopped
from headstart.evaluation.metrics import log_loss
from headstart.evaluation.predictions import Predictions
from headstart.runs.progress import TrainingProgress, epoch_line
from headstart.training.state import TrainingState


@dataclass(frozen=True)
class StepResult:
    """One optimizer step of this process. rates: learning rate of each parameter group; sums: float64 (3,), on the
    device: loss summed over the samples, correct predictions, samples."""

    step: int
    rates: list[float]
    sums: torch.Tensor


@dataclass
class TrainingLog:
    """Every process has one and calls the same methods in the same order; only the main process writes.

    state: updated in place. groups: names of the optimizer's parameter groups. folder: the run folder, None if the run
    only keeps its best model in memory. write: takes a line of metrics.jsonl. keep_best: saves the model when it is the
    best so far (most correct predictions on the validation samples, then the lowest loss); takes its metrics. save:
    saves the training state to be resumed from; called in all processes.
    """

    accelerator: Accelerator
    config: RunConfig
    state: TrainingState
    groups: Sequence[str]
    progress: TrainingProgress
    folder: Path | None
    write: Callable[[dict[str, Any]], object]
    keep_best: Callable[[dict[str, Any]], object]
    save: Callable[[], None] = lambda: None

    def step_done(self, result: StepResult) -> None:
        """After every step; does not wait for a device."""
        if self.accelerator.device.type == "cpu":
            self.progress.add(*result.sums.tolist())
        self.progress.step_done()

    def flush(self, results: list[StepResult], *, seconds: float) -> None:
        """Report the losses of a few steps, summed over all processes. seconds: that they took together.

        Raises InputError if a loss is not finite."""
        sums = self.accelerator.reduce(torch.stack([result.sums for result in results]), "sum").tolist()
        for result, (loss_sum, correct, count) in zip(results, sums, strict=True):
            self._check_finite("loss", loss_sum / count, step=result.step)
            self.state.train_loss_sum += loss_sum
            self.state.train_correct += int(correct)
            self.state.train_seen += int(count)
            if self.accelerator.device.type != "cpu":
                self.progress.add(loss_sum, correct, count)
            if self.accelerator.is_main_process:
                line = {"step": result.step, "loss": loss_sum / count, "accuracy": correct / count}
                line["lr"] = dict(zip(self.groups, result.rates, strict=True))
                self.write(line | {"time_s": seconds / len(results)})

    def probe(self, predictions: Predictions) -> None:
        """Report the probe that tuning starts from, as epoch 0; later epochs are compared with it."""
        state, val = self.state, validation_metrics(predictions)
        state.best_correct, state.best_loss = val["val_correct"], val["val_loss"]
        state.probe |= {key: val[key] for key in ("val_correct", "val_loss")}
        state.probe["is_correct"] = predictions.is_correct.tolist()
        self._write_epoch({"step": 0, "epoch": 0} | val, best=True)

    def epoch(self, predictions: Predictions, *, seconds: float) -> None:
        """Report an epoch by its predictions on the validation samples. seconds: of its training and evaluation.

        Raises InputError if the validation loss is not finite."""
        state, val = self.state, validation_metrics(predictions)
        self._check_finite("validation loss", val["val_loss"], step=state.step)
        state.epochs_evaluated += 1
        line = {
            "step": state.step,
            "epoch": state.epochs_evaluated,
            "train_loss": state.train_loss_sum / state.train_seen,
            "train_accuracy": state.train_correct / state.train_seen,
        }
        state.train_loss_sum, state.train_correct, state.train_seen = 0.0, 0, 0
        best = (val["val_correct"], -val["val_loss"]) > (state.best_correct, -state.best_loss)
        if best:
            state.best_epoch, state.best_correct = state.epochs_evaluated, val["val_correct"]
            state.best_loss = val["val_loss"]
        self._write_epoch(line | val | {"time_s": seconds}, best=best)

    def stopped(self, signal_name: str | None) -> Stopped:
        """The exception that ends the run once its state is saved. signal_name: if this process received the signal."""
        steps = f"step {self.state.step} of {self.progress.total_steps}"
        return Stopped(f"stopped by {signal_name or 'a signal'} at {steps}, and saved", signal_name=signal_name)

    def _write_epoch(self, line: dict[str, Any], *, best: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        if best:
            self.keep_best({key.removeprefix("val_"): value for key, value in line.items() if key.startswith("val_")})
        self.write(line)
        marked = "  best" if best and line["epoch"] > 0 else ""
        self.progress.print(epoch_line(line, self.config.train.epochs) + marked)

    def _check_finite(self, what: str, value: float, *, step: int) -> None:
        if not math.isfinite(value):
            kept = f"; the best weights so far are in {self.folder}" if self.folder and self.state.best_epoch else ""
            raise InputError(
                f"the {what} became {value} at step {step}; lower optim.lr (now {self.config.optim.lr}) or set "
                f"optim.clip_norm 1{kept}"
            )


def validation_metrics(predictions: Predictions) -> dict[str, Any]:
    """What metrics.jsonl holds for the validation samples of an epoch."""
    correct, count = predictions.correct, len(predictions.labels)
    with np.errstate(invalid="ignore"):  # the loss of a model that diverged is nan
        loss = log_loss(predictions.probabilities, predictions.labels)
    return {
        "val_loss": loss,
        "val_correct": correct,
        "val_n": count,
        "val_accuracy": correct / count,
    }
