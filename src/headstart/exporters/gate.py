"""The gate: an exported model is accepted only if it gives the probabilities of `predict` in its own runtime."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from headstart.data.transforms import Preprocess
from headstart.exporters.drawn_images import drawn_files
from headstart.exporters.original import Original
from headstart.exporters.probabilities import Probabilities
from headstart.messages import ProgressStyle
from headstart.predict.predictor import PredictionOptions, Predictor
from headstart.results import Agreement, ExportRefused, Parity
from headstart.runtime.progress import ItemProgress
from headstart.wording import plural

_T = TypeVar("_T")


def check(
    original: Original,
    exported: Probabilities,
    *,
    tolerance: float,
    largest_loss: float | None = None,
    at_most: int = 1000,
    drawn: Sequence[tuple[str, bytes]] | None = None,
    progress: ProgressStyle = "auto",
) -> Parity:
    """As `_check`, and the progress is shown."""
    drawn = drawn_files() if drawn is None else drawn
    images = original.images
    total = len(drawn) + len(drawn[::3])  # a third of them with the usual mistakes as well
    total += 0 if images.missing is not None else len(images.picked("val", at_most=at_most))
    with ItemProgress("compare", total, style=progress) as shown:

        def advancing(items: Iterable[_T]) -> Iterator[_T]:
            for item in items:
                yield item
                shown.advance()

        return _check(original, exported, tolerance, largest_loss, at_most, drawn, advancing)


def _check(
    original: Original,
    exported: Probabilities,
    tolerance: float,
    largest_loss: float | None,
    at_most: int,
    drawn: Sequence[tuple[str, bytes]],
    advancing: Callable[[Iterable[Any]], Iterator[Any]],
) -> Parity:
    """Compare on the drawn images, then on at most so many validation images of the run, if they are where they were.

    drawn: names and contents of image files, by default all of `drawn_files`. largest_loss: of accuracy, for a format
    that rounds the weights; then `tolerance` holds for the mean of the differences on the drawn images and single ones
    may be larger. Raises ExportRefused."""
    # in fp32, as all formats are written; the run may have used another precision
    predictor = Predictor(original.path, device="cpu", precision="fp32")
    spec, images = original.info.preprocess, original.images
    agreement = _agreement(
        [(name, _predicted(predictor, content), exported(spec.decode(content))) for name, content in advancing(drawn)]
    )
    exact = largest_loss is None
    found = agreement.largest if exact else agreement.mean
    if not found <= tolerance:  # also for NaN
        kind = f"{found:.2g} at {agreement.at}" if exact else f"{found:.2g} on average"
        raise ExportRefused(
            f"its probabilities differ from predict's by {kind} of {plural(agreement.n, 'drawn image')}, "
            f"more than {tolerance:g}"
        )
    with_mistakes = advancing([content for _, content in drawn[::3]])
    parity = Parity(tolerance, agreement, _visible(predictor, with_mistakes))
    if images.missing is not None:
        return replace(parity, not_validated=images.missing)
    rows, correct, correct_before = [], 0, 0
    for path, image, label in advancing(images.of_split("val", at_most=at_most)):
        expected, got = _predicted(predictor, image), exported(image)
        rows.append((path, expected, got))
        correct_before += _best(expected) == label
        correct += _best(got) == label
    wanted = len(images.picked("val", at_most=at_most))
    if len(rows) < wanted:
        missing = f"{wanted - len(rows)} of {plural(wanted, 'validation image')} were moved or changed"
        return replace(parity, not_validated=missing)
    agreement = _agreement(rows)
    parity = replace(parity, validation=agreement, correct_before=correct_before, correct=correct)
    if math.isnan(agreement.largest) or (largest_loss is None and agreement.largest > tolerance):
        raise ExportRefused(
            f"its probabilities differ from predict's by {agreement.largest:.2g} at {agreement.at}, "
            f"more than {tolerance:g}"
        )
    if largest_loss is not None and parity.loss > largest_loss:
        raise ExportRefused(
            f"it classifies {correct} of {plural(agreement.n, 'validation image')} correctly and predict "
            f"{correct_before}, a loss of {100 * parity.loss:.1f} points, more than {100 * largest_loss:g}"
        )
    return parity


def _predicted(predictor: Predictor, image: Image.Image | bytes) -> dict[str, float]:
    probabilities = predictor.predict(image)[0].probabilities
    assert probabilities is not None, "a drawn image, or one that was decoded before"
    return probabilities


def _agreement(rows: list[tuple[str, dict[str, float], Mapping[str, float]]]) -> Agreement:
    differences = [_difference(expected, got) for _, expected, got in rows]
    worst = max(range(len(rows)), key=lambda row: math.inf if math.isnan(differences[row]) else differences[row])
    same = sum(_best(expected) == _best(got) for _, expected, got in rows)
    return Agreement(len(rows), differences[worst], float(np.mean(differences)), rows[worst][0], same)


def _difference(expected: Mapping[str, float], got: Mapping[str, float]) -> float:
    """Raises ExportRefused if they are not of the same classes."""
    if expected.keys() != got.keys():
        raise ExportRefused(f"its classes are {', '.join(got)} and not {', '.join(expected)}")
    values = [abs(expected[name] - got[name]) for name in expected]
    return math.nan if any(map(math.isnan, values)) else max(values)


def _best(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__)


def _visible(predictor: Predictor, contents: Iterable[bytes]) -> dict[str, float]:
    """What each of the usual mistakes changes at most on these images: a check that cannot detect them is useless."""
    spec = predictor.info.preprocess

    def of_pixels(pixels: torch.Tensor) -> dict[str, float]:
        """What predict would give if the network saw this uint8 (3, S, S)."""
        found = predictor.predictions(predictor.compute(pixels[None]), PredictionOptions())
        return dict(zip(predictor.classes, found.probabilities[0].tolist(), strict=True))

    largest = dict.fromkeys((*_MISTAKES, "class order"), 0.0)
    for content in contents:
        image = spec.decode(content)
        correct = of_pixels(spec.resize_and_crop(image))
        wrong = {name: of_pixels(mistake(spec, image)) for name, mistake in _MISTAKES.items()}
        values = list(correct.values())
        wrong["class order"] = dict(zip(correct, [values[-1], *values[:-1]], strict=True))
        for name, found in wrong.items():
            largest[name] = max(largest[name], _difference(correct, found))
    return largest


def _other_filter(spec: Preprocess, image: Image.Image) -> torch.Tensor:
    """Nearest neighbour first: a resize without antialiasing to an image that shrinks, and to one that grows."""
    width, height = image.size
    factor = spec.resize_size / min(width, height)
    size = max(spec.resize_size, int(width * factor)), max(spec.resize_size, int(height * factor))
    return spec.resize_and_crop(image.resize(size, Image.Resampling.NEAREST))


_MISTAKES: dict[str, Callable[[Preprocess, Image.Image], torch.Tensor]] = {
    "interpolation": _other_filter,
    "crop by one pixel": lambda spec, image: torch.roll(spec.resize_and_crop(image), (1, 1), dims=(1, 2)),
    "channel order": lambda spec, image: spec.resize_and_crop(image).flip(0),
}
