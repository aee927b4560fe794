"""The images on the page: mistakes and near misses with where the network looked, and the training views."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from headstart.data.decode import UnreadableImage
from headstart.facts import RunFacts
from headstart.pages import content_of, jpeg_uri, not_shown
from headstart.report.measures import weakest_hits, worst_mistakes

if TYPE_CHECKING:
    import torch

MAX_CARDS = 8  # of each kind
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
    """unread: why images are missing, one line each at most; views: data URI of the training views."""

    mistakes: list[Card]
    hits: list[Card]
    num_mistakes: int
    unread: list[str] = field(default_factory=list)
    views: str | None = None

    @property
    def shows_some(self) -> bool:
        return any(card.picture for card in (*self.mistakes, *self.hits))


def hang(facts: RunFacts, read: Callable[[str], bytes] | str) -> Gallery:
    """read: the bytes of the image of that path, or a sentence that says why there are none."""
    confidence, right = facts.confidence, facts.right
    mistakes = worst_mistakes(confidence, right, limit=MAX_CARDS)
    hits = weakest_hits(confidence, right, limit=MAX_CARDS)
    rows = [int(row) for row in (*mistakes, *hits)]
    seen, unread = _load(facts, rows, read)
    pictures = _pictures(facts, seen)
    cards = [_card(facts, row, pictures.get(row, (None, None))) for row in rows]
    return Gallery(
        cards[: len(mistakes)],
        cards[len(mistakes) :],
        int((~right).sum()),
        unread,
        _views(facts.path / "train_views.png"),
    )


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
    facts: RunFacts, rows: list[int], read: Callable[[str], bytes] | str
) -> tuple[dict[int, "torch.Tensor"], list[str]]:
    """The evaluation view of each row, uint8 (3, S, S), of those that are still what the run measured."""
    if isinstance(read, str):
        return {}, [read]
    sha256 = dict(
        zip(facts.manifest.column("path").to_pylist(), facts.manifest.column("sha256").to_pylist(), strict=True)
    )
    spec, seen, lost = facts.info.preprocess, {}, {}
    for row in rows:
        path = facts.paths[row]
        try:
            seen[row] = spec.eval_view(spec.decode(content_of(read, path, sha256.get(path))))
        except UnreadableImage as error:
            lost[path] = str(error)
    return seen, [not_shown(lost, of=len(rows))] if lost else []


def _pictures(facts: RunFacts, seen: dict[int, "torch.Tensor"]) -> dict[int, tuple[str, str]]:
    if not seen:
        return {}
    import torch

    from headstart.report.attention import attention, overlay

    rows = list(seen)
    pixels = torch.stack([seen[row] for row in rows])
    looked = attention(
        facts.path / "model.safetensors", facts.info, pixels, [int(facts.predicted[row]) for row in rows]
    )
    found = {}
    for place, row in enumerate(rows):
        image = Image.fromarray(pixels[place].permute(1, 2, 0).contiguous().numpy())
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        found[row] = jpeg_uri(image, quality=80), jpeg_uri(overlay(image, looked[place]), quality=80)
    return found


def _views(path: Path) -> str | None:
    """The picture that every run draws, small enough to travel."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((VIEWS_PX, VIEWS_PX))
    return jpeg_uri(small, quality=80)
