"""Charts as SVG that takes its colours from the page, so that it is sharp and follows light and dark.

Our own few lines instead of a plotting library: its SVG has fixed colours and is ten times as large, and importing it takes longer than a
run on the feature bank. Nothing here is read aloud: each chart stands in a figure with a caption and its numbers as a table.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from headstart.report.measures import Bin

WIDTH, HEIGHT = 340, 230  # px; a chart is as wide as a phone, so that its letters never shrink
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 12, 36
MAX_POINTS = 300


@dataclass(frozen=True)
class Line:
    """One curve. kind: "train", "val" or "plain", which the style sheet knows. band: lower and upper ends of bars."""

    name: str
    kind: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word at it."""

    x: float
    name: str


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    as_text: Callable[[float], str] = lambda value: f"{value:g}",
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
    mark: Mark | None = None,
) -> Markup:
    """Curves over a common axis. as_text: how a value of y is written; zero: whether 0 belongs to the picture."""
    lines = [_thinned(line) for line in lines]
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y] + [end for line in lines for ends in line.band or () for end in ends]
    x_axis = _Axis.over(xs, LEFT, WIDTH - RIGHT, log=log_x, tight=True)
    y_axis = _Axis.over([*ys, 0.0] if zero else ys, HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [_frame(x_axis, y_axis, x_label, as_text)]
    if mark is not None:
        at = x_axis.place(mark.x)
        anchor = "end" if at > (WIDTH + LEFT) / 2 else "start"
        offset = -5 if anchor == "end" else 5
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="mark" x="{at + offset:.1f}" y="{TOP + 9}" text-anchor="{anchor}">{escape(mark.name)}</text>'
        )
    for line in lines:
        points = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(line.x, line.y, strict=True)]
        for (x, _), (low, high) in zip(points, line.band or (), strict=False):
            parts.append(
                f'<line class="bar {line.kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y_axis.place(low):.1f}" y2="{y_axis.place(high):.1f}"/>'
            )
        parts.append(f'<polyline class="{line.kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        if len(points) <= 60:
            parts += [f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
    return _svg(title, parts)


def reliability_chart(bins: Sequence[Bin], *, title: str) -> Markup:
    """Confidence against the share that is right, with its interval; on the diagonal the two agree."""
    x_axis = _Axis.over([0, 1], LEFT, WIDTH - RIGHT)
    y_axis = _Axis.over([0, 1], HEIGHT - BOTTOM, TOP)
    parts = [
        _frame(
            x_axis,
            y_axis,
            "confidence",
            lambda value: f"{100 * value:.0f} %",
            x_text=lambda value: f"{100 * value:.0f} %",
        )
    ]
    parts.append(
        f'<line class="ideal" x1="{x_axis.place(0):.1f}" y1="{y_axis.place(0):.1f}" x2="{x_axis.place(1):.1f}" y2="{y_axis.place(1):.1f}"/>'
    )
    for one in bins:
        x = x_axis.place(one.confidence)
        low, high = one.is_correct.ci95
        parts.append(
            f'<line class="bar val" x1="{x:.1f}" x2="{x:.1f}" y1="{y_axis.place(low):.1f}" y2="{y_axis.place(high):.1f}"/>'
            f'<circle class="val" cx="{x:.1f}" cy="{y_axis.place(one.is_correct.value):.1f}" r="4"/>'
        )
    return _svg(title, parts)


@dataclass(frozen=True)
class _Axis:
    """Values of low..high on pixels start..end."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    @staticmethod
    def over(values: Sequence[float], start: float, end: float, *, log: bool = False, tight: bool = False) -> "_Axis":
        """tight: the axis ends where the values end, and if it is not logarithmic they are whole numbers."""
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
        low, high = min(finite), max(finite)
        if log:
            ticks = _decades(low, high)
            if tight:
                inside = tuple(tick for tick in ticks if 0.99 * low <= tick <= 1.01 * high)
                return _Axis(low, high, start, end, True, inside)
            return _Axis(min(low, ticks[0]), max(high, ticks[-1]), start, end, True, ticks)
        if low == high:
            low, high = (low - 1, high + 1) if tight else (low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9)
        ticks = _nice(low, high, whole=tight)
        # the values of x end where they end; those of y on a line of the grid
        return _Axis(*((low, high) if tight else (ticks[0], ticks[-1])), start, end, False, ticks)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def _nice(low: float, high: float, *, whole: bool) -> tuple[float, ...]:
    """4 to 6 round numbers: around low..high, or whole ones within it."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
        first = math.ceil(low / step)
        return tuple(number * step for number in range(first, math.floor(high / step) + 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def _decades(low: float, high: float) -> tuple[float, ...]:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    every = max(1, math.ceil((last - first) / 5))
    return tuple(10.0**power for power in range(first, last + every, every))


def _frame(
    x_axis: _Axis,
    y_axis: _Axis,
    x_label: str,
    as_text: Callable[[float], str],
    x_text: Callable[[float], str] = lambda value: f"{value:g}",
) -> str:
    """Grid, numbers and the name of the x axis."""
    parts = []
    for value in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        name = _power(value) if y_axis.log else as_text(value)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
    for value in x_axis.ticks:
        x = x_axis.place(value)
        name = _power(value) if x_axis.log else x_text(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(name)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _power(value: float) -> str:
    """A power of ten: 0.01, 1, 100, 10⁴."""
    power = round(math.log10(value))
    return (
        f"{value:g}" if -3 <= power <= 3 else "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    )


def _svg(title: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _thinned(line: Line) -> Line:
    """At most MAX_POINTS of them: means of neighbours, so that no spike is singled out."""
    if len(line.x) <= MAX_POINTS:
        return line
    edges = [round(i * len(line.x) / MAX_POINTS) for i in range(MAX_POINTS + 1)]
    spans = list(pairwise(edges))
    return Line(
        line.name,
        line.kind,
        [sum(line.x[a:b]) / (b - a) for a, b in spans],
        [sum(line.y[a:b]) / (b - a) for a, b in spans],
    )
