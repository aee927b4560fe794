"""Classes that are mirror images of each other, such as arrows to the left and to the right: flips make them equal.

The test follows the definition: the two classes can be told apart, but the mirrored images of one and the images of the
other cannot (a classifier two-sample test, Lopez-Paz and Oquab 2017). The classifier is ridge regression, with 5-fold
cross-validation, on coarse pixels and histograms of oriented gradients (Dalal and Triggs 2005).
Measurements: docs/explanation/data_check.md.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from headstart.data.decode import UnreadableImage, decode
from headstart.data.source import Source
from headstart.runtime.hardware import usable_cores
from headstart.wording import plural

AXES = {"hflip": 2, "vflip": 1}
"""By the key of the flip in the configuration: the axis that it reverses of images (n, height, width, 3)."""
SIDE = 64  # px of the images that are compared
PER_CLASS, FEWEST, IN_ALL = 96, 12, 600  # images that are read of a class, of a class of many, of all classes
RECHECKED = 3  # pairs of which more images are read, if there are too many classes to read enough of all
LEVEL = 0.001  # of the binomial test, divided by the number of pairs that are tested
CLEAR = 0.7  # smallest share that the first classifier recognises, and that it takes for the other class after the flip
APART = 0.5  # largest excess over chance of the second classifier, as a share of that of the first
_FOLDS, _RIDGE = 5, 0.1
_CELLS, _BINS = 8, 8  # of the histograms of gradients
_DIRECTION = re.compile(r"left|right|links|rechts|gauche|droit|izquierd|derech|sinistr|destr|top|bottom", re.IGNORECASE)


@dataclass(frozen=True)
class MirroredPair:
    """Two classes. axis: "hflip" or "vflip", the flip that turns one into the other; own, mirrored: share of images
    that are classified correctly, and share after the flip."""

    first: str
    second: str
    axis: str
    own: float
    mirrored: float


def in_words(pair: MirroredPair, is_on: bool) -> str:
    """Evidence and remedy, in one clause. is_on: whether training flips the images by default."""
    kind = {"hflip": "horizontal", "vflip": "vertical"}[pair.axis]
    return (
        f"a {kind} flip makes them equal ({pair.own:.0%} are recognised, {pair.mirrored:.0%} after the flip); "
        f"{'train with' if is_on else 'keep'} --data.{pair.axis} false"
    )


def warning(source: Source, paths: Mapping[str, Sequence[str]], *, axes: Sequence[str]) -> str | None:
    """A sentence about the classes that the flips `axes` of training make equal; None if there are none."""
    pairs = find_mirrored_classes(source, paths, axes=axes)
    if not pairs:
        return None
    one = pairs[0]
    more = f" (and {plural(len(pairs) - 1, 'other pair')})" if len(pairs) > 1 else ""
    which = dict.fromkeys(pair.axis for pair in pairs)
    return (
        f"classes {one.first!r} and {one.second!r} look like mirror images of each other{more}; "
        f"{' and '.join(f'data.{axis}' for axis in which)} makes them equal: add "
        + " ".join(f"--data.{axis} false" for axis in which)
    )


def mirrored_pairs(
    images: Mapping[str, np.ndarray], *, axes: Sequence[str] = tuple(AXES), level: float = LEVEL, apart: float = APART
) -> list[MirroredPair]:
    """The pairs of classes that a flip turns into each other.

    images: by class, uint8 (n, SIDE, SIDE, 3) of `thumbnail`; classes of fewer than `_FOLDS` images are ignored. A pair
    is a candidate if the mean of each class, mirrored, is nearer to the other class than to any third one. It is found
    if a classifier of the two classes is right on most images and wrong on most mirrored images, by more than chance at
    `level`, and if a classifier of the mirrored images of one and the images of the other exceeds chance by at most
    `apart` of the excess of the first.
    """
    plain = {name: _features(pixels) for name, pixels in sorted(images.items()) if len(pixels) >= _FOLDS}
    if len(plain) < 2:
        return []
    found = []
    for axis in axes:
        flipped = {name: _features(np.flip(images[name], AXES[axis])) for name in plain}
        candidates = _nearest_to_each_other(plain, flipped)
        for first, second in candidates:
            n = min(len(plain[first]), len(plain[second]))
            rows = (plain[first][:n], plain[second][:n])
            others = (flipped[first][:n], flipped[second][:n])
            own, mirrored = _correct(rows, others)
            between, _ = _correct((others[0], rows[1]), (rows[0], others[1]))
            beyond_chance = _at_least(own + 2 * n - mirrored, 4 * n) < level / len(candidates)
            clear = own >= CLEAR * 2 * n and mirrored <= (1 - CLEAR) * 2 * n
            if beyond_chance and clear and between - n <= apart * (own - n):
                found.append(MirroredPair(first, second, axis, own / (2 * n), mirrored / (2 * n)))
    return found


def find_mirrored_classes(
    source: Source, paths: Mapping[str, Sequence[str]], *, axes: Sequence[str] = tuple(AXES)
) -> list[MirroredPair]:
    """`mirrored_pairs` of a sample of the images. paths: by class, names in the source.

    If there are too many classes for PER_CLASS images of each, a few of each propose pairs, and PER_CLASS images of
    these classes decide. Of more than IN_ALL / FEWEST classes, those whose names have a direction come first. Images
    that cannot be read are ignored."""
    names = sorted(paths, key=lambda name: (_DIRECTION.search(name) is None, name))[: IN_ALL // FEWEST]
    if len(names) < 2 or not axes:
        return []
    each = IN_ALL // len(names)
    if each >= PER_CLASS:
        return mirrored_pairs(_read(source, {name: paths[name] for name in names}, each=PER_CLASS), axes=axes)
    some = _read(source, {name: paths[name] for name in names}, each=each)
    proposed = mirrored_pairs(some, axes=axes, level=len(names) * 0.05, apart=0.75)
    found = []
    for pair in sorted(proposed, key=lambda pair: pair.mirrored - pair.own)[:RECHECKED]:
        both = {name: paths[name] for name in (pair.first, pair.second)}
        found += mirrored_pairs(_read(source, both, each=PER_CLASS), axes=[pair.axis])
    return found


def _read(source: Source, paths: Mapping[str, Sequence[str]], *, each: int) -> dict[str, np.ndarray]:
    """`each` thumbnails of every class, evenly spread over its paths."""

    def read(path: str) -> np.ndarray | None:
        try:
            return thumbnail(decode(source.read(path), jpeg_min_side=2 * SIDE))
        except (OSError, UnreadableImage, MemoryError):
            return None

    chosen = [(name, path) for name, listed in paths.items() for path in listed[:: max(1, len(listed) // each)][:each]]
    images: dict[str, list[np.ndarray]] = defaultdict(list)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for (name, _), pixels in zip(chosen, pool.map(read, [path for _, path in chosen]), strict=True):
            if pixels is not None:
                images[name].append(pixels)
    return {name: np.stack(pixels) for name, pixels in images.items()}


def thumbnail(image: Image.Image) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3) of an RGB image."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _features(images: np.ndarray) -> np.ndarray:
    """(n, SIDE, SIDE, 3) -> float32 (n, d): 16 x 16 pixels in colour, and for 8 x 8 cells the directions of the
    gradients of brightness."""
    pixels = images.astype(np.float32)
    coarse = pixels.reshape(len(images), 16, SIDE // 16, 16, SIDE // 16, 3).mean(axis=(2, 4)).reshape(len(images), -1)
    return np.concatenate([_standardised(coarse), _standardised(_gradients(pixels))], axis=1)


def _gradients(pixels: np.ndarray) -> np.ndarray:
    bright = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    down, across = np.gradient(bright, axis=(1, 2))
    length = np.hypot(across, down)
    angle = np.arctan2(down, across) % (2 * np.pi) / (2 * np.pi) * _BINS
    lower = np.floor(angle)
    share = angle - lower
    cells = []
    for direction in range(_BINS):
        weight = (lower % _BINS == direction) * (1 - share) + ((lower + 1) % _BINS == direction) * share
        cells.append((length * weight).reshape(len(pixels), _CELLS, SIDE // _CELLS, _CELLS, SIDE // _CELLS).sum((2, 4)))
    histograms = np.stack(cells, axis=-1).reshape(len(pixels), -1)
    return np.asarray(np.sqrt(histograms / np.maximum(np.linalg.norm(histograms, axis=1, keepdims=True), 1e-6)))


def _standardised(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))


def _nearest_to_each_other(plain: Mapping[str, np.ndarray], flipped: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """Pairs of classes of which each, mirrored, has the other one as the nearest of the other classes, by means."""
    names = list(plain)
    means, mirrored = (np.stack([by_class[name].mean(axis=0) for name in names]) for by_class in (plain, flipped))
    centre = (means.mean(axis=0) + mirrored.mean(axis=0)) / 2
    distances = np.linalg.norm((mirrored - centre)[:, None] - (means - centre)[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1).tolist()
    return [(names[i], names[j]) for i, j in enumerate(nearest) if i < j and nearest[j] == i]


def _correct(classes: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
    """How many rows of two classes a classifier recognises that was not trained on them, and how many of the rows of
    `others`, the same images in another form, by the same classifiers."""
    rows, other_rows = np.concatenate(classes), np.concatenate(others)
    target = np.repeat([1.0, -1.0], [len(one) for one in classes])
    order = np.random.default_rng(0)
    fold = np.concatenate([order.permutation(len(one)) % _FOLDS for one in classes])
    correct = [0, 0]
    for number in range(_FOLDS):
        trained = fold != number
        mean, goal = rows[trained].mean(axis=0), target[trained]
        centred = rows[trained] - mean
        kernel = centred @ centred.T
        penalty = _RIDGE * max(float(np.trace(kernel)), 1e-6) / len(kernel)
        weights = centred.T @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), goal - goal.mean())
        scores = centred @ weights
        middle = (scores[goal > 0].mean() + scores[goal < 0].mean()) / 2
        for place, tested in enumerate((rows, other_rows)):
            correct[place] += int((((tested[~trained] - mean) @ weights - middle) * target[~trained] > 0).sum())
    return correct[0], correct[1]


def _at_least(successes: int, trials: int) -> float:
    """The probability of so many heads or more in fair tosses."""
    return sum(math.comb(trials, number) for number in range(successes, trials + 1)) / 2.0**trials
