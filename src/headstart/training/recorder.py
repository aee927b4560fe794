"""What a run of the loop writes down as it goes: losses, measured epochs, the best weights so far, and where it is."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from headstart.config import RunConfig
from headstart.errors import InputError, Stopped
from headstart.evaluation.predictions import Predictions
from headstart.evaluation.statistics import log_loss, paired
from headstart.model.classifier import Classifier
from headstart.model.model_file import ModelInfo, save_model
from headstart.runs.folder import RunFolder
from headstart.runs.progress import TrainingProgress, epoch_line
from headstart.training import checkpoint
from headstart.training.state import Position


@dataclass
class Tally:
    """Of one optimizer step, on the device: learning rates, and float64 (3,): loss sum, correct, images."""

    step: int
    rates: list[float]
    sums: torch.Tensor


@dataclass
class Record:
    """Every process has one and calls the same methods; the main process writes.

    model: not wrapped for several processes; info: what its file says, without metrics; state moves along.
    """

    accelerator: Accelerator
    config: RunConfig
    model: Classifier
    info: ModelInfo
    folder: RunFolder
    state: Position
    progress: TrainingProgress

    def losses(self, tallies: list[Tally], *, names: list[str], spent_s: float) -> None:
        """To metrics.jsonl and to the sums of the epoch. names: of the groups of parameters; spent_s: on all these steps.

        Raises InputError if a loss is not finite.
        """
        if not tallies:
            return
        sums = self.accelerator.reduce(torch.stack([tally.sums for tally in tallies]), "sum").tolist()
        for tally, (loss_sum, correct, count) in zip(tallies, sums, strict=True):
            if not math.isfinite(loss_sum):
                raise self._not_finite("loss", loss_sum / count, step=tally.step)
            self.state.train_loss_sum += loss_sum
            self.state.train_correct += int(correct)
            self.state.train_seen += int(count)
            if self.accelerator.device.type != "cpu":
                self.progress.seen(loss_sum, correct, count)
            if self.accelerator.is_main_process:
                self.folder.log(
                    {
                        "step": tally.step,
                        "loss": loss_sum / count,
                        "accuracy": correct / count,
                        "lr": dict(zip(names, tally.rates, strict=True)),
                        "time_s": spent_s / len(tallies),
                    }
                )

    def probe(self, predictions: Predictions) -> None:
        """Epoch 0: the probe as the network computes it before the first update. It is the one to beat."""
        measured = _Measured.of(predictions)
        self.state.best_correct, self.state.best_loss = measured.correct, measured.loss
        right = predictions.is_correct.tolist()
        self.state.probe |= {"val_correct": measured.correct, "val_loss": measured.loss, "right": right}
        self._write(measured, {"step": 0, "epoch": 0} | measured.columns, better=True)

    def epoch(self, predictions: Predictions, *, spent_s: float) -> None:
        """A line of metrics.jsonl, a line on the terminal, and the weights if they are the best so far.

        spent_s: on training and validation of this epoch. Raises InputError if the validation loss is not finite.
        """
        state, measured = self.state, _Measured.of(predictions)
        if not math.isfinite(measured.loss):
            raise self._not_finite("validation loss", measured.loss, step=state.step)
        state.epochs_measured += 1
        row = {
            "step": state.step,
            "epoch": state.epochs_measured,
            "train_loss": state.train_loss_sum / state.train_seen,
            "train_accuracy": state.train_correct / state.train_seen,
        } | measured.columns
        state.curve.append(row)
        state.train_loss_sum, state.train_correct, state.train_seen = 0.0, 0, 0
        better = (measured.correct, -measured.loss) > (state.best_correct, -state.best_loss)
        if better:
            state.best_epoch, state.best_correct, state.best_loss = (
                state.epochs_measured,
                measured.correct,
                measured.loss,
            )
        self._write(measured, row | {"time_s": spent_s}, better=better)

    def position(self, optimizer: Any) -> None:
        """A checkpoint, from the main process; the others wait until it is there.

        Raises InputError, in every process, if a weight is not finite: nothing could be continued from there.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
            raise InputError(
                f"a weight is not finite after step {self.state.step}; lower optim.lr (now {self.config.optim.lr}) or set "
                "optim.clip_norm 1; the checkpoint before this one is kept"
            )
        if self.accelerator.is_main_process:
            self.folder.fsync_metrics()
            scaler = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
            saved = asdict(self.state)
            saved.pop("step")
            saved |= {"scaler": scaler, "config": asdict(self.config), "manifest_sha256": self.info.manifest_sha256}
            checkpoint.save(
                self.folder.checkpoints,
                step=self.state.step,
                state=saved,
                model=self.model,
                optimizer=optimizer.optimizer,
                best=self.folder.model_file,
            )
        self.accelerator.wait_for_everyone()

    def stopped(self, by: str | None, *, total_steps: int) -> Stopped:
        """by: the name of the signal, if this process had it."""
        return Stopped(
            f"stopped by {by or 'a signal'} at step {self.state.step} of {total_steps}, saved in {self.folder.path}; "
            f"continue with --out {self.folder.path} --train.resume auto"
        )

    def against_probe(self, kept: Predictions) -> tuple[dict[str, Any], str]:
        """What the summary says of the probe, and one sentence on whether tuning was worth it."""
        facts = dict(self.state.probe)
        right = facts.pop("right")
        if self.state.best_epoch == 0:
            return facts | {"tuning_kept": False}, "no epoch of tuning did better than the probe; the probe is kept"
        result = paired(right, kept.is_correct.tolist())
        facts |= {"tuning_kept": True, "paired": asdict(result)}
        low, high = result.ci95
        sentence = (
            f"tuning against the probe, the same images: {result.gained} gained, {result.lost} lost, accuracy "
            f"{result.difference:+.1%} [{low:+.1%}, {high:+.1%}], exact McNemar p = {result.p_value:.2g}: "
            + ("beyond chance" if result.beyond_chance else "not beyond chance")
            + "; the tuned model is kept"
        )
        return facts, sentence.replace("%", " %")

    def _write(self, measured: "_Measured", line: dict[str, Any], *, better: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        if better:
            save_model(self.folder.model_file, self.model, replace(self.info, metrics={"val": measured.metrics}))
        self.folder.log(line)
        marked = "  best" if better and line["epoch"] > 0 else ""
        self.progress.say(epoch_line(line, self.config.train.epochs) + marked)

    def _not_finite(self, what: str, value: float, *, step: int) -> InputError:
        kept = f"; the best weights so far are in {self.folder.model_file}" if self.state.best_epoch else ""
        return InputError(
            f"the {what} became {value} at step {step}; lower optim.lr (now {self.config.optim.lr}) or set "
            f"optim.clip_norm 1{kept}"
        )


@dataclass(frozen=True)
class _Measured:
    correct: int
    count: int
    loss: float

    @staticmethod
    def of(predictions: Predictions) -> "_Measured":
        return _Measured(
            predictions.correct, len(predictions.labels), log_loss(predictions.probabilities, predictions.labels)
        )

    @property
    def metrics(self) -> dict[str, float]:
        accuracy = self.correct / self.count
        return {"n": self.count, "correct": self.correct, "accuracy": accuracy, "loss": self.loss}

    @property
    def columns(self) -> dict[str, float]:
        accuracy = self.correct / self.count
        return {"val_loss": self.loss, "val_correct": self.correct, "val_n": self.count, "val_accuracy": accuracy}
