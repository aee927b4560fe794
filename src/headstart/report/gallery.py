"""The images on the page: mistakes and near misses with where the network looked, and the training views."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from headstart.data.decode import UnreadableImage
from headstart.html import jpeg_uri
from headstart.report.image_files import content_of, not_shown
from headstart.report.measures import weakest_hits, worst_mistakes
from headstart.runs.finished_run import RunFacts

if TYPE_CHECKING:
    import torch

MAX_CARDS = 8  # of each kind
MAX_FINDINGS = 10  # of a kind of the data doctor; doctor.html has them all, with pictures
THUMBNAIL_PX = 192
VIEWS_PX = 1120  # width of the picture of training views, at most


@dataclass(frozen=True)
class Card:
    """One validation image. picture: what the network saw; looked: the same with Grad-CAM over it; data URIs, None for an image that
    cannot be read any more."""

    path: str
    label: str
    answer: str
    confidence: float
    of_label: float
    picture: str | None
    looked: str | None


@dataclass(frozen=True)
class Gallery:
    """unread: why images are missing, one line each at most; views: data URI of the training views; suspects: of the images
    whose labels the data doctor suspects, by path."""

    mistakes: list[Card]
    hits: list[Card]
    num_mistakes: int
    unread: list[str] = field(default_factory=list)
    train_batch: str | None = None
    suspects: Mapping[str, str] = field(default_factory=dict)

    @property
    def shows_some(self) -> bool:
        return any(card.picture for card in (*self.mistakes, *self.hits))


def hang(facts: RunFacts, read: Callable[[str], bytes] | str) -> Gallery:
    """read: the bytes of the image of that path, or a sentence that says why there are none."""
    confidence, right = facts.confidence, facts.is_correct
    mistakes = worst_mistakes(confidence, right, limit=MAX_CARDS)
    hits = weakest_hits(confidence, right, limit=MAX_CARDS)
    rows = [int(row) for row in (*mistakes, *hits)]
    seen, lost = _load(facts, [facts.paths[row] for row in rows], read)
    suspects, lost_suspects = _load(facts, _suspected(facts), read)
    pictures = _pictures(facts, rows, seen)
    cards = [_card(facts, row, pictures.get(row, (None, None))) for row in rows]
    lost |= lost_suspects
    unread = [not_shown(lost, of=len({facts.paths[row] for row in rows}.union(_suspected(facts))))] if lost else []
    return Gallery(
        cards[: len(mistakes)],
        cards[len(mistakes) :],
        int((~right).sum()),
        [read] if isinstance(read, str) else unread,
        _views(facts.path / "train_batch.png"),
        {path: jpeg_uri(_thumbnail(pixels), quality=80) for path, pixels in suspects.items()},
    )


def _suspected(facts: RunFacts) -> list[str]:
    """The images whose labels the data doctor suspects, as many as the page lists."""
    findings = [] if facts.doctor is None else facts.doctor["findings"]
    return [one["paths"][0] for one in findings if one["kind"] == "suspected_label"][:MAX_FINDINGS]


def _card(facts: RunFacts, row: int, pictures: tuple[str | None, str | None]) -> Card:
    answer, label = int(facts.predicted[row]), int(facts.labels[row])
    probabilities = facts.probabilities[row]
    return Card(
        facts.paths[row],
        facts.classes[label],
        facts.classes[answer],
        float(probabilities[answer]),
        float(probabilities[label]),
        *pictures,
    )


def _load(
    facts: RunFacts, paths: list[str], read: Callable[[str], bytes] | str
) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
    """The evaluation view of each image, uint8 (3, S, S), that still is what the run measured; why the others are not."""
    if isinstance(read, str):
        return {}, {}
    sha256 = dict(
        zip(facts.manifest.column("path").to_pylist(), facts.manifest.column("sha256").to_pylist(), strict=True)
    )
    spec = facts.info.preprocess
    seen: dict[str, torch.Tensor] = {}
    lost: dict[str, str] = {}
    for path in paths:
        try:
            seen[path] = spec.resize_and_crop(spec.decode(content_of(read, path, sha256.get(path))))
        except UnreadableImage as error:
            lost[path] = str(error)
    return seen, lost


def _pictures(facts: RunFacts, rows: list[int], seen: dict[str, "torch.Tensor"]) -> dict[int, tuple[str, str]]:
    rows = [row for row in rows if facts.paths[row] in seen]
    if not rows:
        return {}
    import torch

    from headstart.report.attention import attention, overlay

    pixels = torch.stack([seen[facts.paths[row]] for row in rows])
    looked = attention(
        facts.path / "model.safetensors", facts.info, pixels, [int(facts.predicted[row]) for row in rows]
    )
    found = {}
    for place, row in enumerate(rows):
        image = _thumbnail(pixels[place])
        found[row] = jpeg_uri(image, quality=80), jpeg_uri(overlay(image, looked[place]), quality=80)
    return found


def _thumbnail(pixels: "torch.Tensor") -> Image.Image:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return image


def _views(path: Path) -> str | None:
    """The picture that every run draws, small enough to travel."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((VIEWS_PX, VIEWS_PX))
    return jpeg_uri(small, quality=80)
