"""The progress of a training run."""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headstart.messages import ProgressStyle
from headstart.runtime.progress import Display, duration, in_words, rate_of

SMOOTHING = 0.9  # factor of older steps per step, in the displayed loss and accuracy


@dataclass(frozen=True)
class Status:
    """Progress of a run. loss, accuracy: of the last training batches. left_s: estimated time to the last step, without
    validation."""

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float | None = None
    accuracy: float | None = None
    images_per_s: float | None = None
    left_s: float | None = None
    memory_bytes: int | None = None

    @staticmethod
    def at(step: int, ends: Sequence[int], **known: float | int | None) -> "Status":
        """ends: last step of each epoch. Step 0 belongs to the first epoch."""
        epoch = min(bisect_left(ends, step) + 1, len(ends))
        return Status(step, ends[-1], epoch, len(ends), **known)  # type: ignore[arg-type]

    @property
    def label(self) -> str:
        return f"epoch {self.epoch}/{self.epochs}"

    @property
    def done(self) -> int:
        return self.step

    @property
    def total(self) -> int:
        return self.total_steps

    @property
    def values(self) -> list[tuple[int, str]]:
        """As of runtime.progress.Shown, without what is not known: in a narrow terminal, memory goes first, then the
        rate, accuracy and loss, and the step."""
        values = [
            (1, f"step {self.step}/{self.total_steps}"),
            None if self.loss is None else (2, f"loss {self.loss:.4f}"),
            None if self.accuracy is None else (3, f"accuracy {self.accuracy:.1%}"),
            None if self.images_per_s is None else (4, f"{rate_of(self.images_per_s)} img/s"),
            None if self.memory_bytes is None else (5, f"{self.memory_bytes / 1e9:.1f} GB"),
            None if self.left_s is None else (0, f"{duration(self.left_s)} left"),
        ]
        return [value for value in values if value is not None]

    def __str__(self) -> str:
        return in_words(self)


class TrainingProgress(Display):
    """Counts optimizer steps and shows the status. It never waits for the device: loss and accuracy are those that the
    training loop has read and passed to `add`."""

    def __init__(
        self,
        *,
        ends: Sequence[int],
        start_step: int,
        batch_size: int,
        style: ProgressStyle = "terminal",
        memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        """ends: last step of each epoch. memory: returns the bytes in use; called once per displayed status."""
        super().__init__(Status.at(start_step, ends), style=style)
        self._ends, self._step, self._batch_size, self._memory = ends, start_step, batch_size, memory
        self._rate_since = (time.perf_counter(), start_step)
        self._sums = (0.0, 0.0, 0.0)  # loss, correct predictions and images, exponentially smoothed

    @property
    def total_steps(self) -> int:
        return self._ends[-1]

    def add(self, loss_sum: float, correct: float, count: float) -> None:
        old_loss, old_correct, old_count = (SMOOTHING * value for value in self._sums)
        self._sums = (old_loss + loss_sum, old_correct + correct, old_count + count)

    def step_done(self) -> None:
        self._step += 1
        if not self.due:
            return
        since, from_step = self._rate_since
        step_s = (time.perf_counter() - since) / (self._step - from_step)
        loss, correct, count = self._sums
        status = Status.at(
            self._step,
            self._ends,
            loss=loss / count if count else None,
            accuracy=correct / count if count else None,
            images_per_s=self._batch_size / max(step_s, 1e-9),
            left_s=(self._ends[-1] - self._step) * step_s,
            memory_bytes=self._memory(),
        )
        self.show(status)

    def print(self, line: str) -> None:
        """Print a line that stays, above the bar. The rate of images is measured anew from here, so that it does not
        include the time of validation."""
        super().print(line)
        self._rate_since = (time.perf_counter(), self._step)


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """The line of metrics.jsonl that ends an epoch, as text. Epoch 0 is the probe that tuning starts from."""
    val = f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.1%} ({row['val_correct']} of {row['val_n']})"
    if row["epoch"] == 0:
        return f"probe  {val}"
    train = f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.1%}"
    return f"epoch {row['epoch']}/{epochs}  {train}  {val}"
