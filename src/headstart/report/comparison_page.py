"""The self-contained page of `headstart compare`, with the images on which two runs disagree."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headstart.data.decode import decode
from headstart.html import environment, jpeg_uri
from headstart.report.comparison import EvaluatedRun
from headstart.report.original_images import OriginalImages, image_reader
from headstart.results import PairedComparison
from headstart.runs.files import mapping_with, read_yaml

THUMBNAIL_PX = 144
MAX_IMAGES = 60  # of a group that are shown
TITLES = {
    "second": "Only {second} is correct",
    "first": "Only {first} is correct",
    "neither": "Both are incorrect, with different predictions",
}


def render_comparison(
    runs: Sequence[EvaluatedRun], comparisons: Sequence[PairedComparison], notes: Sequence[str]
) -> tuple[str, list[str]]:
    """The page as HTML, and a sentence about images that cannot be read in the data folder of the first run."""
    first, folder = runs[0], Path(runs[0].path)
    data = mapping_with(folder / "config.yaml", read_yaml(folder, "config.yaml").get("data"), where="data")
    sha256 = {path: content for path, (content, *_) in zip(first.paths, first.keys, strict=True)}
    images = OriginalImages(image_reader(data), sha256, decode)
    sections = [_section(first, other, found, images) for other, found in zip(runs[1:], comparisons, strict=True)]
    unread = images.unread()
    links = [
        ("runs", "Results"),
        *(
            (f"comparison{number}", f"{found.second} against {found.first}")
            for number, found in enumerate(comparisons, start=1)
        ),
        ("glossary", "Glossary"),
    ]
    values = {
        "links": links,
        "runs": [run.result() for run in runs],
        "n": len(first.keys),
        "notes": [*notes, *unread],
    }
    return environment().get_template("compare.html").render(sections=sections, **values), unread


def _section(
    first: EvaluatedRun, second: EvaluatedRun, comparison: PairedComparison, images: OriginalImages
) -> dict[str, Any]:
    """bar: low end, value and high end of the difference in percent of the scale; limit: end of the scale in points."""
    low, high = comparison.ci95
    limit = max(abs(low), abs(high), 0.01) * 1.1
    groups = []
    for correct, title in TITLES.items():
        group = [row for row in comparison.disagreements if row.correct == correct]
        if group:
            shown = [asdict(row) | {"picture": _picture(images, row.path)} for row in group[:MAX_IMAGES]]
            groups.append((title.format(first=first.path, second=second.path), len(group), shown))
    both = int((first.is_correct & second.is_correct).sum())
    return {
        "comparison": comparison,
        "bar": [50 + 50 * value / limit for value in (low, comparison.difference, high)],
        "limit": 100 * limit,
        "both": both,
        "neither": comparison.n - both - comparison.gained - comparison.lost,
        "groups": groups,
    }


def _picture(images: OriginalImages, path: str) -> str | None:
    image = images.image(path)
    if image is None:
        return None
    image.thumbnail((2 * THUMBNAIL_PX, THUMBNAIL_PX))
    return jpeg_uri(image)
