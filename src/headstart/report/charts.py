"""Charts as SVG that takes its colours from the page, so that it is sharp and follows light and dark mode.

These few lines replace a plotting library, whose SVG has fixed colours and is ten times as large. Each chart is in a
figure with a caption and its numbers as a table, so screen readers need no more than its title.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 230  # px; a chart is as wide as a phone, so that its letters never shrink
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 22, 36
MAX_POINTS = 300


@dataclass(frozen=True)
class Line:
    """One curve. kind: its class in report.css ("train", "val", "plain", "points" without a line, "ideal" without
    points); band: lower and upper ends of the vertical bars at its points."""

    name: str
    kind: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Mark:
    """A vertical line with a label."""

    x: float
    name: str


def short(value: float) -> str:
    return f"{value:.3g}"


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_text: Callable[[float], str] = short,
    x_text: Callable[[float], str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
    mark: Mark | None = None,
    x_ends: tuple[float, float] | None = None,
) -> Markup:
    """Curves over a common axis. y_text, x_text: format the numbers at the axes; without x_text the x axis ends where
    the curves end and has whole numbers or powers of ten; zero: the y axis includes 0; x_ends: the ends of the x axis,
    whatever the values."""
    lines = [_thinned(line) for line in lines]
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y] + [end for line in lines for ends in line.band for end in ends]
    if x_ends is None:
        x_axis = _Axis.over(xs, LEFT, WIDTH - RIGHT, log=log_x, tight=x_text is None)
    else:
        x_axis = _Axis.between(*x_ends, LEFT, WIDTH - RIGHT)
    y_axis = _Axis.over([*ys, 0.0] if zero else ys, HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [_frame(x_axis, y_axis, x_label, y_text, x_text or (lambda value: f"{value:g}"))]
    if mark is not None:
        at = x_axis.place(mark.x)
        anchor = "start" if at < LEFT + WIDTH / 4 else "end" if at > WIDTH * 3 / 4 else "middle"
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="mark" x="{at:.1f}" y="{TOP - 9}" text-anchor="{anchor}">{escape(mark.name)}</text>'
        )
    for line in lines:
        points = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(line.x, line.y, strict=True)]
        for (x, _), ends in zip(points, line.band, strict=False):
            low, high = map(y_axis.place, ends)
            parts.append(f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<polyline class="{line.kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        if len(points) <= 60:
            parts += [f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
    start = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{start}{''.join(parts)}</svg>")


@dataclass(frozen=True)
class _Axis:
    """Maps values of low..high to pixels start..end."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    @staticmethod
    def over(values: Sequence[float], start: float, end: float, *, log: bool = False, tight: bool = False) -> "_Axis":
        """tight: the axis ends where the values end, and unless it is logarithmic its ticks are whole numbers."""
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
        return _Axis(*((low, high) if tight else (ticks[0], ticks[-1])), start, end, False, ticks)

    @staticmethod
    def between(low: float, high: float, start: float, end: float) -> "_Axis":
        """With ticks at both ends, and at the round numbers that are not close to them."""
        margin = 0.12 * (high - low)
        inside = [tick for tick in _nice(low, high, whole=False) if low + margin < tick < high - margin]
        return _Axis(low, high, start, end, False, (low, *inside, high))

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
    y_text: Callable[[float], str],
    x_text: Callable[[float], str],
) -> str:
    """Grid, numbers at the axes, and the label of the x axis."""
    parts = []
    for value in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        name = _power(value) if y_axis.log else y_text(value)
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
    if -3 <= power <= 3:
        return f"{value:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _thinned(line: Line) -> Line:
    """At most MAX_POINTS points: means of neighbours, so that no single outlier represents them."""
    if len(line.x) <= MAX_POINTS:
        return line
    edges = [round(i * len(line.x) / MAX_POINTS) for i in range(MAX_POINTS + 1)]
    spans = list(pairwise(edges))
    x, y = ([sum(values[a:b]) / (b - a) for a, b in spans] for values in (line.x, line.y))
    return Line(line.name, line.kind, x, y)
