"""The gate: an exported model, in its own runtime, answers as `predict` does, or it is not accepted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from headstart.data.transforms import Preprocess
from headstart.exporters.drawn_images import drawn_files
from headstart.exporters.original import Answer, Original
from headstart.predict.predictor import Predictor, Question


class Refused(Exception):
    """The exported model answers otherwise. The message is a clause that says what differs by how much."""


@dataclass(frozen=True)
class Agreement:
    """Of an exported model with the original on n images. largest, mean: differences of probabilities, the largest per image;
    at: the image with the largest; same_class: images with the same most probable class."""

    n: int
    largest: float
    mean: float
    at: str
    same_class: int


@dataclass(frozen=True)
class Parity:
    """What was compared before the model was accepted.

    visible: what mistakes in preprocessing would have changed on the drawn images, by name: the largest difference;
    validation: on images of the run, with the number that each gets right; not_validated: why there is none."""

    tolerance: float
    drawn: Agreement
    visible: Mapping[str, float]
    validation: Agreement | None = None
    correct_before: int | None = None
    correct: int | None = None
    not_validated: str | None = None

    @property
    def loss(self) -> float:
        """Of accuracy, 0.01 is one point; 0 without validation images."""
        if self.validation is None or self.correct is None or self.correct_before is None:
            return 0.0
        return (self.correct_before - self.correct) / self.validation.n

    @property
    def blind_to(self) -> list[str]:
        """Mistakes that the drawn images would not have shown with this model."""
        return [name for name, difference in self.visible.items() if difference <= self.tolerance]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Reference:
    """headstart's own answers in fp32, in which all formats are written; the run may have measured itself in another precision."""

    def __init__(self, original: Original) -> None:
        self.predictor = Predictor(original.path, device="cpu", precision="fp32")

    def answer(self, image: Image.Image | bytes) -> dict[str, float]:
        probabilities = self.predictor.predict(image)[0].probabilities
        assert probabilities is not None, "a drawn image, or one that was decoded before"
        return probabilities

    def of_pixels(self, pixels: torch.Tensor) -> dict[str, float]:
        """What predict would answer if it looked at this uint8 (3, S, S)."""
        answers = self.predictor.answer(self.predictor.compute(pixels[None]), Question())
        return dict(zip(self.predictor.classes, answers.probabilities[0].tolist(), strict=True))


def check(
    original: Original,
    answer: Answer,
    *,
    tolerance: float,
    largest_loss: float | None = None,
    at_most: int = 1000,
    drawn: Sequence[tuple[str, bytes]] | None = None,
) -> Parity:
    """Compare on the drawn images, then on at most so many validation images of the run, if they are where they were.

    drawn: names and contents of image files; by default all of `drawn_files`. largest_loss: of accuracy, for a format that rounds the weights; then `tolerance` holds for the mean of the differences on the drawn
    images and single ones may be larger. Raises Refused.
    """
    reference = Reference(original)
    drawn = drawn_files() if drawn is None else drawn
    spec = original.info.preprocess
    images = ((name, spec.decode(content), content) for name, content in drawn)
    rows = [(name, reference.answer(content), answer(image)) for name, image, content in images]
    agreement = _agreement(rows)
    exact = largest_loss is None
    found = agreement.largest if exact else agreement.mean
    if not found <= tolerance:  # also for NaN
        kind = f"{agreement.largest:.2g} at {agreement.at}" if exact else f"{agreement.mean:.2g} on average"
        raise Refused(
            f"its probabilities differ from predict's by {kind} of {agreement.n} drawn images, more than {tolerance:g}"
        )
    visible = _visible(reference, spec, [content for _, content in drawn[::3]])
    missing = original.images.missing
    if missing is not None:
        return Parity(tolerance, agreement, visible, not_validated=missing)
    return _validated(original, reference, answer, Parity(tolerance, agreement, visible), largest_loss, at_most)


def _validated(
    original: Original, reference: Reference, answer: Answer, so_far: Parity, largest_loss: float | None, at_most: int
) -> Parity:
    rows, correct, correct_before = [], 0, 0
    for path, image, label in original.images.of_split("val", at_most=at_most):
        expected, got = reference.answer(image), answer(image)
        rows.append((path, expected, got))
        correct_before += _best(expected) == label
        correct += _best(got) == label
    wanted = original.images.count("val", at_most=at_most)
    if len(rows) < wanted:
        reason = (
            f"{wanted - len(rows)} of {wanted} validation images are not where they were, or are not what they were"
        )
        return Parity(so_far.tolerance, so_far.drawn, so_far.visible, not_validated=reason)
    agreement = _agreement(rows)
    parity = Parity(so_far.tolerance, so_far.drawn, so_far.visible, agreement, correct_before, correct)
    if largest_loss is None and not agreement.largest <= parity.tolerance:
        raise Refused(
            f"its probabilities differ from predict's by {agreement.largest:.2g} at {agreement.at}, more than {parity.tolerance:g}"
        )
    if largest_loss is not None and parity.loss > largest_loss:
        raise Refused(
            f"it gets {correct} of {agreement.n} validation images right where predict gets {correct_before}, a loss of "
            f"{100 * parity.loss:.1f} points, more than {100 * largest_loss:g}"
        )
    return parity


def _agreement(rows: list[tuple[str, dict[str, float], Mapping[str, float]]]) -> Agreement:
    differences = [_difference(expected, got) for _, expected, got in rows]
    worst = max(range(len(rows)), key=lambda place: math.inf if math.isnan(differences[place]) else differences[place])
    same = sum(_best(expected) == _best(got) for _, expected, got in rows)
    return Agreement(len(rows), differences[worst], float(np.mean(differences)), rows[worst][0], same)


def _difference(expected: Mapping[str, float], got: Mapping[str, float]) -> float:
    """Raises Refused if they are not of the same classes."""
    if expected.keys() != got.keys():
        raise Refused(f"its classes are {', '.join(got)} and not {', '.join(expected)}")
    values = [abs(expected[name] - got[name]) for name in expected]
    return math.nan if any(map(math.isnan, values)) else max(values)


def _best(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__)


def _visible(reference: Reference, spec: Preprocess, contents: list[bytes]) -> dict[str, float]:
    """A gate that could not fail would be none: what each of the usual mistakes changes at most on these images."""
    largest = dict.fromkeys((*_MISTAKES, "class order"), 0.0)
    classes = list(reference.predictor.classes)
    for content in contents:
        image = spec.decode(content)
        right = reference.of_pixels(spec.resize_and_crop(image))
        for name, mistake in _MISTAKES.items():
            largest[name] = max(largest[name], _difference(right, reference.of_pixels(mistake(spec, image))))
        rolled = {name: right[classes[place - 1]] for place, name in enumerate(classes)}
        largest["class order"] = max(largest["class order"], _difference(right, rolled))
    return largest


def _other_filter(spec: Preprocess, image: Image.Image) -> torch.Tensor:
    """Nearest neighbour beforehand: what a resize without antialiasing does to an image that shrinks, and to one that grows."""
    width, height = image.size
    factor = spec.resize_size / min(width, height)
    size = max(spec.resize_size, int(width * factor)), max(spec.resize_size, int(height * factor))
    return spec.resize_and_crop(image.resize(size, Image.Resampling.NEAREST))


def _shifted(spec: Preprocess, image: Image.Image) -> torch.Tensor:
    """One pixel to the left and up."""
    return torch.roll(spec.resize_and_crop(image), (1, 1), dims=(1, 2))


def _swapped(spec: Preprocess, image: Image.Image) -> torch.Tensor:
    """BGR."""
    return spec.resize_and_crop(image).flip(0)


_MISTAKES: dict[str, Callable[[Preprocess, Image.Image], torch.Tensor]] = {
    "interpolation": _other_filter,
    "crop by one pixel": _shifted,
    "channel order": _swapped,
}
