"""What a person sees while it trains: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_EVERY_S = 5.0
SMOOTHING = 0.9  # of loss and accuracy: what a step counts after the next one


@dataclass(frozen=True)
class Status:
    """Where a run is. loss and accuracy: of the last training batches; left_s: to the last step, without what validation takes."""

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
        """ends: the step that ends each epoch, which is of that epoch still; before the first step it is the first one."""
        epoch = min(bisect_left(ends, step) + 1, len(ends))
        return Status(step, ends[-1], epoch, len(ends), **known)  # type: ignore[arg-type]

    @property
    def measured(self) -> str:
        """'loss 0.4123  accuracy 84.2 %  120 img/s  1.3 GB  32 s left', as far as it is known."""
        parts = [
            None if self.loss is None else f"loss {self.loss:.4f}",
            None if self.accuracy is None else f"accuracy {100 * self.accuracy:.1f} %",
            None if self.images_per_s is None else f"{self.images_per_s:.{0 if self.images_per_s >= 10 else 1}f} img/s",
            None if self.memory_bytes is None else f"{self.memory_bytes / 1e9:.1f} GB",
            None if self.left_s is None else f"{_time(self.left_s)} left",
        ]
        return "  ".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"epoch {self.epoch}/{self.epochs}  step {self.step}/{self.total_steps}  {self.measured}".rstrip()


class Display:
    """Shows statuses: a bar while there is a terminal, else a line when the last one is a while ago."""

    def __init__(self, status: Status, *, speaks: bool) -> None:
        self.console = Console(quiet=not speaks, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._bar: Progress | None = None
        if self.console.is_terminal and speaks:
            columns = (
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=24),
                TextColumn("step {task.fields[step]}  {task.fields[measured]}"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task("train", total=status.total_steps, completed=status.step, **_fields(status))
        self._said_at = time.perf_counter()

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether a status that is shown now would be seen."""
        return self._bar is not None or time.perf_counter() - self._said_at >= PLAIN_EVERY_S

    def show(self, status: Status) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=status.step, total=status.total_steps, **_fields(status))
        elif self.due:
            self.console.print(str(status))
            self._said_at = time.perf_counter()

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(line)
        self._said_at = time.perf_counter()


class TrainingProgress:
    """Counts optimizer steps. Silent unless `speaks`: one process of several does. It never waits for the device: loss and accuracy are shown
    when somebody else has read them."""

    def __init__(
        self,
        *,
        ends: Sequence[int],
        start_step: int,
        batch_size: int,
        speaks: bool,
        memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        """ends: the step that ends each epoch; memory: bytes in use, asked about as often as they are shown."""
        self._ends, self._step, self._batch_size, self._memory = ends, start_step, batch_size, memory
        self._display = Display(Status.at(start_step, ends), speaks=speaks)
        self._speaks = speaks
        self._rate_from = (time.perf_counter(), start_step)
        self._sums = (0.0, 0.0, 0.0)  # of loss, correct and images, older ones fading

    def __enter__(self) -> "TrainingProgress":
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)

    def seen(self, loss_sum: float, correct: float, count: float) -> None:
        """What a step came to."""
        values = (loss_sum, correct, count)
        self._sums = tuple(SMOOTHING * old + new for old, new in zip(self._sums, values, strict=True))  # type: ignore[assignment]

    def step_done(self) -> None:
        """One optimizer step more."""
        self._step += 1
        if not self._speaks or not self._display.due:
            return
        since, from_step = self._rate_from
        step_s = (time.perf_counter() - since) / (self._step - from_step)
        loss, correct, count = self._sums
        self._display.show(
            Status.at(
                self._step,
                self._ends,
                loss=loss / count if count else None,
                accuracy=correct / count if count else None,
                images_per_s=self._batch_size / max(step_s, 1e-9),
                left_s=(self._ends[-1] - self._step) * step_s,
                memory_bytes=self._memory(),
            )
        )

    def say(self, line: str) -> None:
        """A line that stays, above the bar; the rate of images starts anew after it."""
        self._display.say(line)
        self._rate_from = (time.perf_counter(), self._step)


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """A line of metrics.jsonl that ends an epoch, in words; epoch 0 is the probe that a run starts from."""
    val = f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.1%} ({row['val_correct']} of {row['val_n']})"
    if row["epoch"] == 0:
        return f"probe  {val}".replace("%", " %")
    train = f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.1%}"
    return f"epoch {row['epoch']}/{epochs}  {train}  {val}".replace("%", " %")


def _fields(status: Status) -> dict[str, Any]:
    return {
        "epoch": f"{status.epoch}/{status.epochs}",
        "step": f"{status.step}/{status.total_steps}",
        "measured": status.measured,
    }


def _time(seconds: float) -> str:
    """'32 s', '3:05 min', '2:14 h'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
