"""The page of `headstart compare`: one HTML file that needs nothing else, with the images that two runs disagree on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from headstart.compare import Comparison, Measured, disagreements
from headstart.config import DataConfig
from headstart.data.decode import UnreadableImage, decode
from headstart.data.source import open_source
from headstart.errors import InputError
from headstart.pages import environment, jpeg_uri
from headstart.stats import wilson

THUMBNAIL_PX = 144
MAX_IMAGES = 60  # of a group that are shown
_TITLES = {
    "second": "Only {second} is right",
    "first": "Only {first} is right",
    "neither": "Both are wrong, differently",
}


@dataclass(frozen=True)
class _Bar:
    """An interval on a scale of 0 to 100, and the point in it."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class _Image:
    path: str
    label: str
    first: str
    second: str
    picture: str | None


@dataclass(frozen=True)
class _Group:
    title: str
    count: int
    images: list[_Image]


@dataclass(frozen=True)
class _Section:
    comparison: Comparison
    words: str
    difference: str
    loss: str
    bar: _Bar
    zero: float
    cells: list[int]  # both right, only the second, only the first, neither
    groups: list[_Group]


def compare_page(runs: Sequence[Measured], comparisons: Sequence[Comparison], notes: Sequence[str]) -> str:
    """The whole page. The thumbnails come from where the first run found its images; without those it has none."""
    picture = _pictures(Path(runs[0].path))
    sections = [_section(runs[0], other, found, picture) for other, found in zip(runs[1:], comparisons, strict=True)]
    rows = []
    for run in runs:
        correct, count = int(run.right.sum()), len(run.keys)
        low, high = wilson(correct, count)
        rows.append(
            (run.path, run.strategy, _percent(correct / count), f"{_percent(low)} to {_percent(high)}", correct)
        )
    return (
        environment()
        .get_template("compare.html")
        .render(rows=rows, n=len(runs[0].keys), sections=sections, notes=notes)
    )


def _section(
    first: Measured, second: Measured, comparison: Comparison, picture: Callable[[str], str | None]
) -> _Section:
    low, high = comparison.ci95
    reach = max(abs(low), abs(high), 0.01) * 1.1
    found = disagreements(first, second)
    groups = []
    for side, title in _TITLES.items():
        ours = [row for row in found if row["right"] == side]
        if ours:
            images = [_image(row, picture) for row in ours[:MAX_IMAGES]]
            groups.append(_Group(title.format(first=first.path, second=second.path), len(ours), images))
    both = int((first.right & second.right).sum())
    cells = [both, comparison.gained, comparison.lost, comparison.n - both - comparison.gained - comparison.lost]
    return _Section(
        comparison=comparison,
        words=comparison.in_words(),
        difference=f"{100 * comparison.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]",
        loss=comparison.loss_in_words(),
        bar=_Bar(*(50 + 50 * value / reach for value in (low, comparison.difference, high))),
        zero=50.0,
        cells=cells,
        groups=groups,
    )


def _image(row: dict[str, Any], picture: Callable[[str], str | None]) -> _Image:
    return _Image(
        path=row["path"],
        label=row["label"],
        first=f"{row['first']}, {_percent(row['first_probability'])}",
        second=f"{row['second']}, {_percent(row['second_probability'])}",
        picture=picture(row["path"]),
    )


def _pictures(run: Path) -> Callable[[str], str | None]:
    """From the name of an image to a small JPEG as a data URI, or None where it cannot be had any more."""
    known = {field.name for field in fields(DataConfig)}
    try:
        section = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
        source = open_source(DataConfig(**{name: value for name, value in section.items() if name in known}))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, InputError):
        return lambda path: None

    def picture(path: str) -> str | None:
        try:
            image = decode(source.read(path))
        except (UnreadableImage, OSError, KeyError):
            return None
        image.thumbnail((2 * THUMBNAIL_PX, THUMBNAIL_PX))
        return jpeg_uri(image)

    return picture


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
