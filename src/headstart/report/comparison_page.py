"""The page of `headstart compare`: one HTML file that needs nothing else, with the images that two runs disagree on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from headstart.config import DataConfig
from headstart.data.decode import UnreadableImage, decode
from headstart.data.sources.open import open_source
from headstart.errors import InputError
from headstart.evaluation.statistics import wilson
from headstart.html import environment, jpeg_uri
from headstart.report.comparison import Comparison, Measured, disagreements
from headstart.report.image_files import content_of, not_shown
from headstart.runs.files import has, read_yaml
from headstart.wording import one_line

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
    scale: list[tuple[int, str]]  # where a number stands under the bar, and which
    cells: list[int]  # both right, only the second, only the first, neither
    groups: list[_Group]


def compare_page(
    runs: Sequence[Measured], comparisons: Sequence[Comparison], notes: Sequence[str]
) -> tuple[str, list[str]]:
    """The whole page, and what to say of images that it cannot show. They come from where the first run found them."""
    pictures = _Pictures(runs[0])
    sections = [_section(runs[0], other, found, pictures) for other, found in zip(runs[1:], comparisons, strict=True)]
    unread = pictures.unread()
    rows = []
    for run in runs:
        correct, count = int(run.is_correct.sum()), len(run.keys)
        low, high = wilson(correct, count)
        rows.append(
            (run.path, run.strategy, _percent(correct / count), f"{_percent(low)} to {_percent(high)}", correct)
        )
    template = environment().get_template("compare.html")
    return template.render(rows=rows, n=len(runs[0].keys), sections=sections, notes=[*notes, *unread]), unread


def _section(first: Measured, second: Measured, comparison: Comparison, pictures: "_Pictures") -> _Section:
    low, high = comparison.ci95
    reach = max(abs(low), abs(high), 0.01) * 1.1
    found = disagreements(first, second)
    groups = []
    for side, title in _TITLES.items():
        ours = [row for row in found if row["right"] == side]
        if ours:
            images = [_image(row, pictures) for row in ours[:MAX_IMAGES]]
            groups.append(_Group(title.format(first=first.path, second=second.path), len(ours), images))
    both = int((first.is_correct & second.is_correct).sum())
    cells = [both, comparison.gained, comparison.lost, comparison.n - both - comparison.gained - comparison.lost]
    return _Section(
        comparison=comparison,
        words=comparison.in_words(),
        difference=f"{100 * comparison.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]",
        loss=comparison.loss_in_words(),
        bar=_Bar(*(50 + 50 * value / reach for value in (low, comparison.difference, high))),
        zero=50.0,
        scale=[(0, f"{-100 * reach:.1f}"), (50, "0"), (100, f"{100 * reach:+.1f} points")],
        cells=cells,
        groups=groups,
    )


def _image(row: dict[str, Any], pictures: "_Pictures") -> _Image:
    return _Image(
        path=row["path"],
        label=row["label"],
        first=f"{row['first']}, {_percent(row['first_probability'])}",
        second=f"{row['second']}, {_percent(row['second_probability'])}",
        picture=pictures.of(row["path"]),
    )


class _Pictures:
    """Small JPEGs of the images of a run as data URIs, as far as they still are what it measured; and which are not."""

    def __init__(self, run: Measured) -> None:
        self._sha256 = {path: content for path, (content, *_) in zip(run.paths, run.keys, strict=True)}
        self._found: dict[str, str | None] = {}
        self._lost: dict[str, str] = {}
        self._read = _reader(Path(run.path))

    def of(self, path: str) -> str | None:
        """None for an image that cannot be had any more."""
        if path not in self._found:
            self._found[path] = self._picture(path)
        return self._found[path]

    def unread(self) -> list[str]:
        """One sentence, if images are missing."""
        return [not_shown(self._lost, of=len(self._found))] if self._lost else []

    def _picture(self, path: str) -> str | None:
        try:
            image = decode(content_of(self._read, path, self._sha256[path]))
        except UnreadableImage as error:
            self._lost[path] = str(error)
            return None
        image.thumbnail((2 * THUMBNAIL_PX, THUMBNAIL_PX))
        return jpeg_uri(image)


def _reader(run: Path) -> Callable[[str], bytes]:
    """From the path of an image to its bytes; it raises InputError for each if nobody knows where they are."""
    known = {field.name for field in fields(DataConfig)}
    data = has(run / "config.yaml", read_yaml(run, "config.yaml").get("data"), where="data")
    try:
        return open_source(DataConfig(**{name: value for name, value in data.items() if name in known})).read
    except (TypeError, InputError) as error:
        reason = one_line(error)

        def gone(path: str) -> bytes:
            raise InputError(reason)

        return gone


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
