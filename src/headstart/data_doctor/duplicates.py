"""Near duplicates: re-encoded, resized, mirrored images. Perceptual hashes propose pairs, features confirm them.

A pHash (Zauner 2010, by ImageHash) keeps the signs of the lowest frequencies of an image, so a copy differs in a few
bits. So do images that merely share a layout; the cosine of the backbone's features distinguishes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from headstart.data.splits import components
from headstart.features.logistic_regression import Features

HASH_SIDE = 16  # 16 x 16 frequencies
MAX_BITS = 24  # of 256 that may differ in a candidate pair; measurements in docs/explanation/data_check.md
CLOSE_BITS = 12  # up to here the hashes alone are nearly sufficient
# of the features of a confirmed pair, up to CLOSE_BITS and beyond. A mirrored copy of a grainy picture without its
# grain may reach only 0.69, less than two pictures of one kind: this rejects accidents of the hash and proves nothing.
MIN_COSINE_CLOSE, MIN_COSINE = 0.6, 0.85
PER_IMAGE = 20  # the closest candidates of one image; a group of many equal images is joined all the same
_WORDS = HASH_SIDE * HASH_SIDE // 64
_BLOCK = 1024


@dataclass(frozen=True)
class Pair:
    """Two images, by index, first < second. bits: number that differ; mirrored: left to right."""

    first: int
    second: int
    bits: int
    mirrored: bool


def perceptual_hashes(image: Image.Image) -> np.ndarray:
    """uint64 (2, 4): the 256-bit pHash of an RGB image, and that of its mirror image."""
    import imagehash

    side = 4 * HASH_SIDE  # pixels that pHash works on; both hashes share this expensive step
    small = image.convert("L").resize((side, side), Image.Resampling.LANCZOS)
    both = [imagehash.phash(one, hash_size=HASH_SIDE).hash for one in (small, ImageOps.mirror(small))]
    return np.packbits(np.array(both).reshape(2, -1), axis=1).view(np.uint64)


def candidates(hashes: np.ndarray, *, max_bits: int = MAX_BITS) -> list[Pair]:
    """Pairs of images whose hashes are close, mirrored or not. hashes: uint64 (n, 2, 4) of `perceptual_hashes`.

    All pairs are compared, in blocks, at 64 bits per instruction: O(n^2) time, O(n) memory. A hash with few or nearly
    all bits set belongs to an image without detail, which resembles all others of its kind: it has no candidates.
    """
    found = []
    detailed = np.abs(np.bitwise_count(hashes[:, 0]).sum(axis=1, dtype=np.int64) - 32 * _WORDS) <= 16 * _WORDS
    plain, mirror = hashes[:, 0], hashes[:, 1]
    for start in range(0, len(hashes), _BLOCK):
        block = plain[start : start + _BLOCK]
        straight, mirrored = (_distances(block, others[start:]) for others in (plain, mirror))
        bits = np.minimum(straight, mirrored)
        bits[~detailed[start : start + _BLOCK]] = 64 * _WORDS
        bits[:, ~detailed[start:]] = 64 * _WORDS
        for row in np.flatnonzero((bits <= max_bits).any(axis=1)).tolist():
            later = bits[row, row + 1 :]
            close = np.flatnonzero(later <= max_bits)
            if len(close) > PER_IMAGE:
                close = close[np.argsort(later[close], kind="stable")[:PER_IMAGE]]
            for column in (close + row + 1).tolist():
                by_mirror = bool(mirrored[row, column] < straight[row, column])
                found.append(Pair(start + row, start + column, int(bits[row, column]), by_mirror))
    return found


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(a, 4) and (b, 4) uint64 -> (a, b) uint16: how many bits differ."""
    total = np.zeros((len(some), len(others)), dtype=np.uint16)
    for word in range(_WORDS):
        total += np.bitwise_count(some[:, None, word] ^ others[None, :, word])
    return total


def confirmed(pairs: Sequence[Pair], features: Features, *, rows: np.ndarray | None = None) -> list[Pair]:
    """The pairs whose features have a high cosine; more is required where more bits differ. features: (n, d); rows:
    (m,) int, the row of each image in them, None if they are in the order of the images. Only rows of pairs are
    read."""
    kept = []
    for start in range(0, len(pairs), 4 * _BLOCK):
        some = pairs[start : start + 4 * _BLOCK]
        ends = np.array([(pair.first, pair.second) for pair in some])
        ends = ends if rows is None else rows[ends]
        first, second = (np.asarray(features[ends[:, end]], dtype=np.float64) for end in (0, 1))
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosine = (first * second).sum(axis=1) / np.maximum(norms, 1e-12)
        least = np.where([pair.bits <= CLOSE_BITS for pair in some], MIN_COSINE_CLOSE, MIN_COSINE)
        kept += [pair for pair, good in zip(some, cosine >= least, strict=True) if good]
    return kept


def clusters(sha256: Sequence[str], hashes: np.ndarray, features: Features) -> np.ndarray:
    """(n,) int: the cluster of each image, the index of its first image.

    sha256: (n,) of the contents; hashes: uint64 (n, 2, 4) of `perceptual_hashes`; features: (n, d) of the backbone.
    Equal contents and confirmed pairs are joined (single linkage).
    """
    return joined(sha256, confirmed(candidates(hashes), features))


def joined(sha256: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """The clusters of pairs and equal contents, numbered as in `clusters`."""
    first_of: dict[str, int] = {}
    equal = [(first_of.setdefault(sha, index), index) for index, sha in enumerate(sha256)]
    return np.array(components(len(sha256), equal + [(pair.first, pair.second) for pair in pairs]), dtype=np.int64)
