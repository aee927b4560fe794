"""Progress on the screen: a bar in a terminal, one output that is updated in a notebook, else a line every few
seconds."""

import sys
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, Self

from headstart.messages import LOG, ProgressStyle

LINE_EVERY_S = 5.0
REFRESH_S = 0.25  # between two changes of a bar or of an output in a notebook
WIDEST_BAR, NARROWEST_BAR = 24, 5


class Shown(Protocol):
    """What a display shows. label: always shown, in front of the bar; done, total: of the bar, total is None if it is
    unknown; values: (rank, text) in order; where there is no room, those of the highest rank are left out first, those
    of rank 0 never."""

    @property
    def label(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    @property
    def values(self) -> list[tuple[int, str]]: ...


class Display:
    """Shows progress. `log`: prints a line where there is no bar; None prints it to the standard output."""

    def __init__(
        self,
        first: Shown,
        *,
        style: ProgressStyle = "terminal",
        stderr: bool = False,
        log: Callable[[str], object] | None = None,
    ) -> None:
        screen = screen_of(stderr=stderr)
        self._quiet = style == "silent" or (style == "auto" and screen == "log" and log is None)
        self._stderr, self._log = stderr, log or self._write
        self._bar: _Bar | _Output | None = None
        if screen != "log" and not self._quiet:
            self._bar = _Output() if screen == "notebook" else _Bar(first, stderr=stderr)
        self._shown_at = time.perf_counter()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether `show` would print something now."""
        if self._quiet:
            return False
        return time.perf_counter() - self._shown_at >= (LINE_EVERY_S if self._bar is None else REFRESH_S)

    def show(self, status: Shown) -> None:
        if not self.due:
            return
        self._shown_at = time.perf_counter()
        if self._bar is None:
            self._log(in_words(status))
        else:
            self._bar.show(status)

    def print(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        if not self._quiet:
            self._write(line) if self._bar is None else self._bar.print(line)
        self._shown_at = time.perf_counter()

    def _write(self, line: str) -> None:
        print(line, file=sys.stderr if self._stderr else sys.stdout, flush=True)


class ItemProgress(Display):
    """Counts items such as images and shows their rate and the time left."""

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "img",
        style: ProgressStyle = "auto",
        began: float | None = None,
        **options: Any,
    ) -> None:
        """what: what is done, such as "features". began: time.perf_counter at the beginning, None for now. options: of
        Display."""
        self.label, self.total, self.done, self._unit = what, total, 0, unit
        self._began = time.perf_counter() if began is None else began
        super().__init__(self, style=style, **{"log": LOG.info, **options})

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.total is not None:
            self.done = min(self.done, self.total)
        self.show(self)

    @property
    def values(self) -> list[tuple[int, str]]:
        spent = time.perf_counter() - self._began
        if not self.done:
            return []
        of = "" if self.total is None else f"/{self.total:,}"
        values = [(1, f"{self.done:,}{of}"), (2, f"{rate_of(self.done / max(spent, 1e-9))} {self._unit}/s")]
        if self.total is not None:
            values.append((0, f"{duration(spent / self.done * (self.total - self.done))} left"))
        return values


class _Bar:
    """In a terminal."""

    def __init__(self, first: Shown, *, stderr: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=stderr)
        self._column = BarColumn()
        label, text = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("label", "text"))
        self._progress = Progress(
            label, self._column, text, console=self._console, transient=True, refresh_per_second=1 / REFRESH_S
        )
        self._task = self._progress.add_task("", label="", text="", total=None)
        self.show(first)
        self.start, self.stop = self._progress.start, self._progress.stop

    def print(self, line: str) -> None:
        self._console.print(line)

    def show(self, status: Shown) -> None:
        width = self._console.width
        text = fitted(status, width - len(status.label) - NARROWEST_BAR - 2)
        room = width - len(status.label) - len(text) - 2
        self._column.bar_width = min(WIDEST_BAR, max(NARROWEST_BAR, room))
        self._progress.update(self._task, completed=status.done, total=status.total, label=status.label, text=text)


class _Output:
    """In a notebook: one output with the printed lines and, below them, the progress."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._current = ""
        self._handle: Any = None

    def start(self) -> None: ...

    def stop(self) -> None:
        if self._lines:  # otherwise the last progress is all that tells what was done
            self._current = ""
            self._update()

    def show(self, status: Shown) -> None:
        self._current = in_words(status)
        self._update()

    def print(self, line: str) -> None:
        self._lines.append(line)
        self._update()

    def _update(self) -> None:
        from IPython.display import display

        content = {"text/plain": "\n".join([*self._lines, *([self._current] if self._current else [])])}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(content, raw=True)


def screen_of(*, stderr: bool) -> Literal["terminal", "notebook", "log"]:
    """What shows the standard output, or the standard error. Does not import rich, which takes longer than to predict
    a few images."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell":
        return "notebook"
    stream = sys.stderr if stderr else sys.stdout
    return "terminal" if stream is not None and stream.isatty() else "log"


def fitted(status: Shown, width: int) -> str:
    """The values that fit into so many columns."""
    kept = list(status.values)
    while len(text := "  ".join(value for _, value in kept)) > width and (worst := max(rank for rank, _ in kept)) > 0:
        kept.remove(next(pair for pair in reversed(kept) if pair[0] == worst))
    return text


def in_words(status: Shown) -> str:
    return "  ".join([status.label, *(value for _, value in status.values)])


def rate_of(per_second: float) -> str:
    """'120', '3.4'."""
    return f"{per_second:.{0 if per_second >= 10 else 1}f}"


def duration(seconds: float) -> str:
    """'32 s', '3:05 min', '2:14 h'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
