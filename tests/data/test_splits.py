"""Stratified, seeded, the same on every machine."""

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.classes import classes_of_one_side
from headstart.data.limit import limited
from headstart.data.source import Entry
from headstart.data.splits import groups_of, stratified_split, units_of
from headstart.errors import InputError

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


# ------------------------------------------------------------------------------------------------- groups, folds,
# growth


@given(strata_lists, st.integers(0, 5), st.sampled_from([0.1, 0.25, 0.5]))
def test_the_images_of_a_unit_stay_together(strata: list[str], seed: int, val_fraction: float) -> None:
    units = [f"{stratum}{index // 3}" for index, stratum in enumerate(strata)]
    split = stratified_split(units, strata, val_fraction=val_fraction, seed=seed)
    assert all(len({s for s, u in zip(split, units, strict=True) if u == unit}) == 1 for unit in units)


def test_a_group_with_several_classes_counts_as_one_of_most_of_them() -> None:
    units = ["patient 1"] * 5 + ["patient 2"] * 5 + ["patient 3"] * 5 + ["patient 4"] * 5
    strata = (["a"] * 4 + ["b"]) * 2 + (["b"] * 4 + ["a"]) * 2
    split = stratified_split(units, strata, val_fraction=0.5, seed=0)
    assert Counter(zip(split, strata, strict=True)) == {
        ("train", "a"): 5,
        ("val", "a"): 5,
        ("train", "b"): 5,
        ("val", "b"): 5,
    }


@given(strata_lists, st.integers(0, 5), st.booleans())
def test_folds_validate_every_image_once_if_there_are_enough(strata: list[str], seed: int, stable: bool) -> None:
    units = ids_of(strata)
    splits = [
        stratified_split(units, strata, val_fraction=0.2, seed=seed, folds=4, fold=fold, stable=stable)
        for fold in range(4)
    ]
    held = Counter(index for split in splits for index, part in enumerate(split) if part == "val")
    assert set(held.values()) <= {1}
    sizes = Counter(strata)
    if not stable:
        for stratum, size in sizes.items():
            counts = [sum(s == "val" and t == stratum for s, t in zip(split, strata, strict=True)) for split in splits]
            assert max(counts) - min(counts) <= 1
            assert sum(counts) == size
        wholes = [split.count("val") for split in splits]
        assert max(wholes) - min(wholes) <= 1  # over all strata, too


@given(strata_lists, st.integers(0, 5), st.integers(1, 30))
def test_a_stable_split_moves_no_image_when_others_come(strata: list[str], seed: int, more: int) -> None:
    units = ids_of(strata)
    before = stratified_split(units, strata, val_fraction=0.3, seed=seed, stable=True)
    more_units = [f"new {number}" for number in range(more)]
    after = stratified_split([*more_units, *units], ["a"] * more + strata, val_fraction=0.3, seed=seed, stable=True)
    assert after[more:] == before


def test_copies_join_groups_and_a_unit_is_called_by_its_first_group() -> None:
    groups = ["p2", "p2", "p1", "p3", "", "", ""]
    contents = ["a", "b", "b", "c", "c", "d", "d"]
    assert units_of(groups, contents) == ["p1", "p1", "p1", "p3", "p3", "d", "d"]
    assert units_of([""] * 7, contents) == contents


@given(st.lists(st.tuples(st.sampled_from(["", "p", "q", "r", "s"]), st.sampled_from("abcdefgh")), max_size=30))
def test_units_are_the_smallest_that_hold_groups_and_copies_together(images: list[tuple[str, str]]) -> None:
    units = units_of([group for group, _ in images], [content for _, content in images])
    linked = {
        frozenset((i, j))
        for i, (g, c) in enumerate(images)
        for j, (h, d) in enumerate(images)
        if i < j and (c == d or (g and g == h))
    }
    reach = {i: {i} for i in range(len(images))}
    for _ in images:
        for i, j in map(tuple, linked):
            reach[i] = reach[j] = reach[i] | reach[j]
            for k in reach[i]:
                reach[k] = reach[i]
    assert all((units[i] == units[j]) == (j in reach[i]) for i in reach for j in reach)


@given(strata=strata_lists, limits=st.tuples(st.integers(1, 90), st.integers(1, 90)), order=st.randoms())
def test_a_limit_keeps_the_share_of_each_class_and_a_larger_one_keeps_all_of_a_smaller_one(
    strata: list[str], limits: tuple[int, int], order: random.Random
) -> None:
    sizes, contents = Counter(strata), [hashlib.sha256(name.encode()).hexdigest() for name in ids_of(strata)]
    smaller, larger = sorted(max(limit, len(sizes)) for limit in limits)
    chosen = limited(contents, strata, limit=smaller)
    assert len(chosen) == min(smaller, len(strata))
    kept = Counter(strata[index] for index in chosen)
    for stratum, size in sizes.items():
        assert kept[stratum] >= 1
        assert kept[stratum] <= max(1, len(chosen) * size / len(strata) + len(sizes))
        assert kept[stratum] >= min(size, len(chosen) * size / len(strata)) - len(sizes)
    assert {*chosen} <= {*limited(contents, strata, limit=larger)}
    shuffled = order.sample(range(len(strata)), len(strata))
    again = limited([contents[i] for i in shuffled], [strata[i] for i in shuffled], limit=smaller)
    assert sorted(shuffled[i] for i in again) == chosen


def test_the_choice_of_a_limit_is_frozen_and_needs_a_place_for_each_class() -> None:
    names = ids_of(["a"] * 12 + ["b"] * 4)
    contents = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    assert limited(contents, ["a"] * 12 + ["b"] * 4, limit=5) == [3, 4, 5, 8, 13]
    with pytest.raises(ValueError, match="1 images for 2 classes"):
        limited(contents, ["a"] * 12 + ["b"] * 4, limit=1)


def test_a_class_on_one_side_is_named() -> None:
    lacking = classes_of_one_side(["a", "a", "b", "b", "c", "c"], ["train", "val", "val", "val", "train", "train"])
    assert list(lacking) == ["b", "c"]
    for name, side in (("b", "val"), ("c", "train")):
        for fragment in (f"'{name}'", side, "2 images"):
            assert fragment in lacking[name]


def test_the_share_of_a_stable_split_is_that_on_average() -> None:
    strata = ["a"] * 4000
    split = stratified_split(ids_of(strata), strata, val_fraction=0.2, seed=0, stable=True)
    assert abs(split.count("val") / 4000 - 0.2) < 0.02


PATHS = ["a/patient1_x.jpg", "a/patient1_y.jpg", "b/patient2_x.jpg", "b/other.jpg"]


def entries(paths: list[str]) -> list[Entry]:
    return [Entry(path, path.split("/")[0], group="own") for path in paths]


def test_groups_are_the_sources_own_a_pattern_or_a_file(tmp_path: Path) -> None:
    assert groups_of(entries(PATHS), "") == ["own"] * 4
    assert groups_of(entries(PATHS), "(patient[0-9]+)") == ["group patient1", "group patient1", "group patient2", ""]
    (tmp_path / "groups.csv").write_text("path,group\na/patient1_x.jpg,7\nb/other.jpg,7\n")
    assert groups_of(entries(PATHS), str(tmp_path / "groups.csv")) == ["group 7", "", "", "group 7"]
    for name, text in (
        ("groups.csv", "\ufeff\r\npath; group\r\na\\patient1_x.jpg; 7\r\nb\\other.jpg; 7\r\n"),
        ("GROUPS.CSV", "path,group\na/patient1_x.jpg,7\nb/other.jpg,7\n"),
        ("groups.csv", '"path";"group"\n"a/patient1_x.jpg";"7"\n"b/other.jpg";"7"\n'),
        ("groups.tsv", "group\tpath\n7\ta/patient1_x.jpg\n7\tb/other.jpg\n"),
    ):
        (tmp_path / name).write_text(text)
        assert groups_of(entries(PATHS), str(tmp_path / name)) == ["group 7", "", "", "group 7"], name


@pytest.mark.parametrize(
    ("groups", "fragment"),
    [
        ("patient", "0 groups"),
        ("(a)(b)", "2 groups"),
        ("(", "regular expression"),
        ("(nobody)", "a/patient1_x.jpg"),
        ("nowhere.csv", "No such file"),
    ],
)
def test_groups_that_do_not_fit_the_images_are_refused(groups: str, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        groups_of(entries(PATHS), groups)
    assert groups in str(caught.value)
    assert fragment in str(caught.value)


def test_a_file_without_rows_groups_nothing(tmp_path: Path) -> None:
    """As data check writes it for images without copies."""
    (tmp_path / "groups.csv").write_text("path,group\n")
    assert groups_of(entries(PATHS), str(tmp_path / "groups.csv")) == [""] * 4


def test_a_file_of_groups_needs_its_two_columns(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image,patient\n")
    with pytest.raises(InputError, match=r"groups\.csv.*\bpath\b.*\bgroup\b"):
        groups_of(entries(PATHS), str(tmp_path / "groups.csv"))
    for text, pattern in (
        ("path,group\nc.jpg,1\n", r"'c\.jpg'"),
        ("path,group\na/patient1_x.jpg, left, 1\n", r"row 1 \(line 2\) has 3 values"),
        ("path,group\na/patient1_x.jpg\n", "row 1.*'group'"),
        ("path,group,group\na/patient1_x.jpg,1,2\n", "'group'"),
    ):
        (tmp_path / "groups.csv").write_text(text)
        with pytest.raises(InputError, match=rf"groups\.csv.*{pattern}"):
            groups_of(entries(PATHS), str(tmp_path / "groups.csv"))
