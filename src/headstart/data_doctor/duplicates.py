"""Which images are nearly the same: re-encoded, resized, mirrored. Perceptual hashes propose, features confirm.

A pHash (Zauner 2010, by ImageHash) keeps the signs of an image's lowest frequencies, so that a copy differs in a few bits;
images that merely share a layout do too, and the cosine of the backbone's features tells them apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from headstart.features.logistic_regression import Features

HASH_SIDE = 16  # 16 x 16 frequencies
MAX_BITS = 24  # of 256 that may differ in a candidate pair; docs/data_doctor.md has what was measured
SURE_BITS = 12  # up to here the hashes alone are nearly enough
# of the features of a confirmed pair, up to SURE_BITS and beyond. A copy of a grainy picture without its grain, mirrored,
# may be as low as 0.69, lower than two pictures of one kind: so this refuses accidents of the hash and proves nothing.
MIN_COSINE_SURE, MIN_COSINE = 0.6, 0.85
PER_IMAGE = 20  # candidates of one image, the closest; a crowd of equal images is joined all the same
_WORDS = HASH_SIDE * HASH_SIDE // 64
_BLOCK = 1024


@dataclass(frozen=True)
class Pair:
    """Two images, by their indices, first < second. bits: of the hashes that differ; mirrored: left to right."""

    first: int
    second: int
    bits: int
    mirrored: bool


def perceptual_hashes(image: Image.Image) -> np.ndarray:
    """uint64 (2, 4): the 256-bit pHash of an RGB image, and that of its mirror image."""
    import imagehash

    side = 4 * HASH_SIDE  # pHash works on so many pixels; both hashes share the costly step
    small = image.convert("L").resize((side, side), Image.Resampling.LANCZOS)
    both = [imagehash.phash(one, hash_size=HASH_SIDE).hash for one in (small, ImageOps.mirror(small))]
    return np.packbits(np.array(both).reshape(2, -1), axis=1).view(np.uint64)


def candidates(hashes: np.ndarray, *, max_bits: int = MAX_BITS) -> list[Pair]:
    """Pairs of images whose hashes are close, mirrored or not. hashes: uint64 (n, 2, 4) of `perceptual_hashes`.

    All pairs are compared, in blocks, at 64 bits per instruction: the time grows with n squared, the memory with n.
    A hash with few or nearly all bits set is that of an image without any detail, which resembles all others of its kind:
    it has no candidates.
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
    """The pairs whose features point the same way, the more so the more bits differ. features: (n, d); rows: (m,) int, the row of each image in them
    (by default the images are the rows). Only rows of pairs are read."""
    kept = []
    for some in _batches(pairs):
        ends = np.array([(pair.first, pair.second) for pair in some])
        ends = ends if rows is None else rows[ends]
        first, second = (np.asarray(features[ends[:, end]], dtype=np.float64) for end in (0, 1))
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosine = (first * second).sum(axis=1) / np.maximum(norms, 1e-12)
        least = np.where([pair.bits <= SURE_BITS for pair in some], MIN_COSINE_SURE, MIN_COSINE)
        kept += [pair for pair, good in zip(some, cosine >= least, strict=True) if good]
    return kept


def _batches(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    for start in range(0, len(pairs), 4 * _BLOCK):
        yield pairs[start : start + 4 * _BLOCK]


def clusters(sha256: Sequence[str], hashes: np.ndarray, features: Features) -> np.ndarray:
    """(n,) int: images with the same number show the same thing; it is the index of the first of them.

    sha256: (n,) of the contents; hashes: uint64 (n, 2, 4) of `perceptual_hashes`; features: (n, d) of the backbone.
    Joined are equal contents and confirmed pairs, and what these join (single linkage).
    """
    return joined(sha256, confirmed(candidates(hashes), features))


def joined(sha256: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """The clusters that pairs and equal contents make, numbered as in `clusters` (union-find)."""
    parent = np.arange(len(sha256))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    first_of: dict[str, int] = {}
    equal = [(first_of.setdefault(sha, index), index) for index, sha in enumerate(sha256)]
    for one, other in equal + [(pair.first, pair.second) for pair in pairs]:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(index) for index in range(len(parent))], dtype=np.int64)
