"""Stratified, seeded, the same on every machine."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.splits import stratified_split

strata_lists = st.lists(st.sampled_from("abcd"), min_size=1, max_size=80)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**63 - 1)


def ids_of(strata: list[str]) -> list[str]:
    return [f"{number:04x}" for number in range(len(strata))]


@given(strata=strata_lists, val_fraction=fractions, seed=seeds)
def test_every_stratum_of_two_or_more_is_on_both_sides(strata: list[str], val_fraction: float, seed: int) -> None:
    split = stratified_split(ids_of(strata), strata, val_fraction=val_fraction, seed=seed)
    pairs = set(zip(strata, split, strict=True))
    for stratum, count in Counter(strata).items():
        assert (stratum, "train") in pairs
        assert (stratum, "val") in pairs or count == 1


@given(strata=strata_lists, val_fraction=fractions, seed=seeds)
def test_each_stratum_gets_its_share_to_within_one(strata: list[str], val_fraction: float, seed: int) -> None:
    split = stratified_split(ids_of(strata), strata, val_fraction=val_fraction, seed=seed)
    for stratum, count in Counter(strata).items():
        num_val = sum(s == stratum and part == "val" for s, part in zip(strata, split, strict=True))
        assert abs(num_val - val_fraction * count) <= 1


@given(counts=st.lists(st.integers(20, 60), min_size=1, max_size=4), val_fraction=st.floats(0.1, 0.9), seed=seeds)
def test_the_total_is_the_rounded_share(counts: list[int], val_fraction: float, seed: int) -> None:
    strata = [str(code) for code, count in enumerate(counts) for _ in range(count)]
    split = stratified_split(ids_of(strata), strata, val_fraction=val_fraction, seed=seed)
    assert split.count("val") == round(val_fraction * len(strata))


@given(strata=strata_lists, seed=seeds, order=st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(strata: list[str], seed: int, order: object) -> None:
    ids = ids_of(strata)
    split = dict(zip(ids, stratified_split(ids, strata, val_fraction=0.3, seed=seed), strict=True))
    shuffled = list(range(len(ids)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = stratified_split([ids[i] for i in shuffled], [strata[i] for i in shuffled], val_fraction=0.3, seed=seed)
    assert again == [split[ids[i]] for i in shuffled]


def test_another_seed_gives_another_split_of_the_same_sizes() -> None:
    strata = ["a"] * 50 + ["b"] * 30
    splits = [stratified_split(ids_of(strata), strata, val_fraction=0.25, seed=seed) for seed in range(10)]
    assert len({tuple(split) for split in splits}) == 10
    assert {tuple(sorted(Counter(zip(strata, s, strict=True)).items())) for s in splits} == {
        ((("a", "train"), 37), (("a", "val"), 13), (("b", "train"), 23), (("b", "val"), 7))
    }


def test_the_split_of_a_seed_is_frozen() -> None:
    strata = ["a"] * 6 + ["b"] * 6
    split = stratified_split(ids_of(strata), strata, val_fraction=0.33, seed=0)
    assert [i for i, part in enumerate(split) if part == "val"] == FROZEN


FROZEN = [2, 3, 9, 10]


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_one_side_empty_is_refused(val_fraction: float) -> None:
    with pytest.raises(ValueError, match=r"data\.val_fraction"):
        stratified_split(["1", "2"], ["a", "a"], val_fraction=val_fraction, seed=0)
