"""Near-duplicates: copies are close, different pictures are not, clusters are what pairs join."""

import io

import numpy as np
import pytest
from PIL import Image
from support.planting import altered, scene

from headstart.data_doctor.duplicates import MAX_BITS, Pair, candidates, clusters, confirmed, joined, perceptual_hashes


def hashed(*images: Image.Image) -> np.ndarray:
    return np.array([perceptual_hashes(image) for image in images])


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize("way", range(4))
def test_altered_copies_are_candidates_and_know_whether_they_are_mirrored(way):
    pictures = [scene(k % 3, k) for k in range(6)]
    found = candidates(hashed(*pictures, *(opened(altered(picture, way)) for picture in pictures)))
    assert [(pair.first, pair.second) for pair in found] == [(k, k + 6) for k in range(6)]
    assert {pair.mirrored for pair in found} == {way >= 2}


def test_different_pictures_of_a_class_are_far_apart():
    assert candidates(hashed(*(scene(0, k) for k in range(12))), max_bits=2 * MAX_BITS) == []


def test_candidates_are_those_of_counting_bit_by_bit():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (40, 2, 4), dtype=np.uint64)
    hashes[7] = hashes[3] ^ np.uint64(0b10110)
    hashes[30, 1] = hashes[11, 0]

    def bits(one: np.ndarray, other: np.ndarray) -> int:
        return sum((int(a) ^ int(b)).bit_count() for a, b in zip(one, other, strict=True))

    expected = []
    for i in range(40):
        for j in range(i + 1, 40):
            straight, mirrored = bits(hashes[i, 0], hashes[j, 0]), bits(hashes[i, 0], hashes[j, 1])
            if min(straight, mirrored) <= 100:
                expected.append(Pair(i, j, min(straight, mirrored), mirrored < straight))
    assert candidates(hashes, max_bits=100) == expected
    assert {(3, 7), (11, 30)} <= {(pair.first, pair.second) for pair in expected}


def test_blocks_do_not_matter(monkeypatch):
    hashes = np.random.default_rng(1).integers(0, 2**64, (50, 2, 4), dtype=np.uint64)
    whole = candidates(hashes, max_bits=105)
    monkeypatch.setattr("headstart.data_doctor.duplicates._BLOCK", 7)
    assert candidates(hashes, max_bits=105) == whole != []


def test_a_crowd_of_equal_images_stays_one_cluster_without_all_its_pairs():
    hashes = np.repeat(hashed(scene(0, 1)), 300, axis=0)
    found = candidates(hashes)
    assert len(found) <= 300 * 20
    assert set(joined([str(k) for k in range(300)], found)) == {0}


def test_images_without_detail_are_not_taken_for_copies():
    flat = [Image.new("RGB", (64, 48), colour) for colour in ("red", "navy", "white")]
    ramp = Image.linear_gradient("L").convert("RGB")
    assert candidates(hashed(*flat, ramp, ramp.resize((90, 70)))) == []


def test_features_that_point_elsewhere_refuse_a_candidate():
    features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], dtype=np.float32)
    pairs = [Pair(0, 1, 3, False), Pair(0, 2, 3, False)]
    assert confirmed(pairs, features) == pairs[:1]
    features[1] = [0.7, 0.7]  # 45 degrees: enough for close hashes, not for others
    assert confirmed([Pair(0, 1, 12, False), Pair(0, 1, 13, True)], features) == [Pair(0, 1, 12, False)]
    assert confirmed([Pair(5, 9, 3, False)], features, rows=np.array([-1] * 5 + [0, -1, -1, -1, 2])) == []
    features[1] = [0.7, 0.7]  # 45 degrees: enough for close hashes, not for others
    assert confirmed([Pair(0, 1, 12, False), Pair(0, 1, 13, True)], features) == [Pair(0, 1, 12, False)]
    assert confirmed([Pair(5, 9, 3, False)], features, rows=np.array([-1] * 5 + [0, -1, -1, -1, 1])) != []


def test_clusters_join_equal_contents_and_near_copies_and_what_these_join():
    first, second, third = scene(0, 1), scene(0, 2), scene(0, 3)
    images = [first, second, opened(altered(first, 0)), third, opened(altered(first, 2)), second]
    sha256 = ["a", "b", "c", "d", "e", "b"]
    features = np.ones((6, 4), dtype=np.float32)
    assert clusters(sha256, hashed(*images), features).tolist() == [0, 1, 0, 3, 0, 1]


def test_no_images_have_no_clusters():
    assert clusters([], np.empty((0, 2, 4), dtype=np.uint64), np.empty((0, 512), dtype=np.float32)).shape == (0,)
