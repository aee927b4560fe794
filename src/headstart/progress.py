"""What a person sees while it trains: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 5.0


class TrainingProgress:
    """Counts optimizer steps. Silent unless `speaks`: one process of several does."""

    def __init__(self, *, total_steps: int, start_step: int, batch_size: int, speaks: bool) -> None:
        self.console = Console(quiet=not speaks, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._total, self._step, self._batch_size = total_steps, start_step, batch_size
        self._bar: Progress | None = None
        if self.console.is_terminal and speaks:
            self._bar = Progress(
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("train", total=total_steps, completed=start_step, status="")
        self._said_at = time.perf_counter()
        self._rate_from = (self._said_at, start_step)

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step_done(self, loss: float | None) -> None:
        """One optimizer step more; loss is that of the last batch, if it is known."""
        self._step += 1
        now = time.perf_counter()
        since, from_step = self._rate_from
        rate = (self._step - from_step) * self._batch_size / max(now - since, 1e-9)
        status = f"{rate:.0f} img/s" + ("" if loss is None else f"  loss {loss:.4f}")
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, status=status)
        elif now - self._said_at >= PLAIN_EVERY_S:
            left_s = (self._total - self._step) * (now - since) / (self._step - from_step)
            self.console.print(f"step {self._step}/{self._total}  {status}  {left_s:.0f} s left")
            self._said_at = now

    def say(self, line: str) -> None:
        """A line that stays, above the bar; the rate of images starts anew after it."""
        self.console.print(line)
        self._said_at = time.perf_counter()
        self._rate_from = (self._said_at, self._step)
