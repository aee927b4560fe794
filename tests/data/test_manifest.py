"""The scan of an image folder: what is found, what is skipped and named, what is refused."""

import hashlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.config import DataConfig
from headstart.data.decode import decode
from headstart.data.eval_manifest import build_eval_manifest
from headstart.data.manifest import build_manifest
from headstart.data.read_images import cancelled_on_error
from headstart.data.samples import Manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data.sources.open import open_source
from headstart.errors import InputError

Draw = Callable[..., Path]


def scan(root: Path | str, **changes: Any) -> Manifest:
    seed = changes.pop("seed", 0)
    data = DataConfig(**{"root": str(root), "val_fraction": 0.25} | changes)
    return build_manifest(open_source(data), data, seed=seed, num_threads=1)


def refusal(root: Path | str, **changes: Any) -> str:
    """The message that refuses this folder, checked to be one line."""
    with pytest.raises(InputError) as caught:
        scan(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def skipped(manifest: Manifest) -> dict[str, str]:
    return {file.path: file.reason for file in manifest.skipped}


def counts(manifest: Manifest) -> dict[tuple[str, str], int]:
    return dict(Counter((sample.split, sample.label) for sample in manifest.samples))


# ------------------------------------------------------------------------------------------------- what is found


def test_train_and_val_of_class_folders_are_taken_as_they_are(tiny_data: Path) -> None:
    manifest = scan(tiny_data)
    assert manifest.classes == ("blue_waves", "green_stripes", "red_checks")
    assert counts(manifest) == {
        (split, label): count for split, count in (("train", 12), ("val", 5)) for label in manifest.classes
    }
    assert manifest.skipped == ()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_folder_has_three_names(name: str, image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    (root / "val").rename(root / name)
    manifest = scan(root)
    assert len(manifest.of("val")) == 6
    assert {sample.path.split("/")[0] for sample in manifest.of("val")} == {name}


def test_samples_are_sorted_by_split_and_path(tiny_data: Path) -> None:
    places = [(sample.split, sample.path) for sample in scan(tiny_data).samples]
    assert len(places) == 51
    assert places == sorted(places)


def test_a_sample_names_its_file_and_the_hash_of_its_content(tiny_data: Path) -> None:
    for sample in scan(tiny_data).samples[:5]:
        assert hashlib.sha256((tiny_data / sample.path).read_bytes()).hexdigest() == sample.sha256
        assert sample.id == sample.sha256[:16]


def test_a_class_folder_named_like_a_split_is_a_class(image_folder: Draw) -> None:
    classes = ("dev board", "test_tube", "train-station", "validation stamp")
    manifest = scan(image_folder(train=4, classes=classes))
    assert manifest.classes == classes


def test_classes_called_train_and_test_are_classes_where_they_hold_images(image_folder: Draw) -> None:
    assert scan(image_folder(train=4, classes=("car", "test", "train"))).classes == ("car", "test", "train")


def test_classes_below_train_and_val_may_be_called_train_and_val(image_folder: Draw) -> None:
    manifest = scan(image_folder(train=3, val=2, classes=("train", "val")))
    assert counts(manifest) == {("train", "train"): 3, ("train", "val"): 3, ("val", "train"): 2, ("val", "val"): 2}


def test_classes_are_in_the_order_of_their_names(image_folder: Draw) -> None:
    manifest = scan(image_folder(train=3, classes=("b", "a10", "B", "a2", "é")))
    assert manifest.classes == ("B", "a10", "a2", "b", "é")


@pytest.mark.parametrize(
    "name", ["[1].jpg", "a b.jpg", "日本語.jpg", "Ünïcode é.jpg", "100%.jpg", "#1.jpg", "x.y.JPG", "*.jpg", "q?.jpg"]
)
def test_a_file_may_have_an_odd_name(name: str, image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    old = root / "train/red_checks/red_checks_00.jpg"
    old.rename(old.with_name(name))
    assert f"train/red_checks/{name}" in [sample.path for sample in scan(root).of("train")]


def test_images_in_folders_below_a_class_folder_belong_to_the_class(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    deep = root / "train/red_checks/2024/may"
    deep.mkdir(parents=True)
    (root / "train/red_checks/red_checks_00.jpg").rename(deep / "a.jpg")
    manifest = scan(root)
    assert {s.path: s.label for s in manifest.samples}["train/red_checks/2024/may/a.jpg"] == "red_checks"
    assert len(manifest.samples) == 15


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".git"])
def test_a_hidden_folder_is_neither_a_class_nor_searched(hidden: str, image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    before = scan(root)
    for place in (root, root / "train", root / "train/red_checks"):
        shutil.copytree(root / "val/red_checks", place / hidden)
    assert scan(root) == before


def test_a_hidden_file_is_not_an_image(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    (root / "train/red_checks/._red_checks_00.jpg").write_bytes(b"resource fork")
    assert len(scan(root).samples) == 15


def test_a_file_of_another_type_is_skipped_by_name(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    Image.new("RGB", (8, 8)).save(root / "train/red_checks/imageNotFound.gif")
    (root / "val/red_checks/notes").write_text("x")
    found = skipped(scan(root))
    assert found.keys() == {"train/red_checks/imageNotFound.gif", "val/red_checks/notes"}
    assert ".gif" in found["train/red_checks/imageNotFound.gif"]


@pytest.mark.parametrize("place", [".", "train", "train/red_checks", "val"])
def test_a_metadata_file_changes_no_label(place: str, image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    before = scan(root).samples
    (root / place / "metadata.csv").write_text("file_name,label\nred_checks_00.jpg,wrong\n")
    assert scan(root).samples == before


def test_an_image_outside_the_class_folders_is_skipped_by_name(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    shutil.copy(root / "val/red_checks/red_checks_00.jpg", root / "train/stray.jpg")
    assert list(skipped(scan(root))) == ["train/stray.jpg"]


def test_a_folder_beside_train_and_val_is_named_as_unused(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    shutil.copytree(root / "val", root / "drafts")
    manifest = scan(root)
    assert list(skipped(manifest)) == ["drafts"]
    assert len(manifest.samples) == 15


def test_a_linked_class_folder_is_followed(image_folder: Draw, tmp_path: Path) -> None:
    root = image_folder(train=3, val=2)
    (root / "train/red_checks").rename(tmp_path / "elsewhere")
    (root / "train/red_checks").symlink_to(tmp_path / "elsewhere")
    assert len(scan(root).samples) == 15


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.rar").write_bytes(b"Rar!")
    message = refusal(tmp_path / "images.rar")
    assert "images.rar" in message
    assert "file" in message
    (tmp_path / "images.zip").write_bytes(b"PK")
    assert "zip archive" in refusal(tmp_path / "images.zip")


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "1 image" in refusal(tmp_path)


def test_an_empty_class_is_refused_by_name(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    (root / "train/purple").mkdir()
    assert "train/purple" in refusal(root)


def test_a_single_class_is_refused_by_name(image_folder: Draw) -> None:
    message = refusal(image_folder(train=3, classes=("red",)))
    assert "'red'" in message
    assert "single class" in message
    assert "add images of another class" in message


@pytest.mark.parametrize(("kept", "lacking"), [("train", "val"), ("val", "train")])
def test_a_class_of_one_split_only_is_refused_by_name(kept: str, lacking: str, image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    shutil.rmtree(root / lacking / "red_checks")
    message = refusal(root)
    assert "'red_checks'" in message
    assert re.search(rf"\b{kept}/.*\b{lacking}/", message)


@pytest.mark.parametrize(("has", "lacks"), [("train", "val"), ("val", "train")])
def test_one_half_of_a_split_is_refused_with_two_ways_to_continue(has: str, lacks: str, image_folder: Draw) -> None:
    root = image_folder(train=4, val=4)
    shutil.rmtree(root / lacks)
    message = refusal(root).replace(str(root), "")
    assert re.search(rf"\b{has}\b.*\b{lacks}\b", message)
    assert "--data.split stratified" in message
    assert len(scan(root, split="stratified").samples) == 12
    assert len(scan_to_evaluate(root).samples) == 12


def test_a_class_of_one_image_cannot_be_split(image_folder: Draw) -> None:
    root = image_folder(train=3)
    for path in sorted((root / "red_checks").iterdir())[1:]:
        path.unlink()
    message = refusal(root)
    assert "'red_checks'" in message
    assert "single image" in message


def damage(root: Path) -> dict[str, bytes]:
    """Damage three files in three ways."""
    whole = (root / "train/red_checks/red_checks_00.jpg").read_bytes()
    damaged = {
        "train/red_checks/red_checks_00.jpg": whole[: len(whole) // 2],
        "train/green_stripes/green_stripes_00.jpg": b"",
        "val/blue_waves/blue_waves_00.jpg": b"<html>404</html>",
    }
    for name, data in damaged.items():
        (root / name).write_bytes(data)
    return damaged


def test_unreadable_files_are_refused_with_names_and_reasons(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    damaged = damage(root)
    message = refusal(root)
    assert [name for name in damaged if name not in message] == []
    assert "3 " in message
    assert "--data.on_bad_file skip" in message
    for reason in ("truncated", "empty", "HTML page"):
        assert reason in message


def test_dark_images_of_sixteen_bits_are_reported_in_every_run(
    image_folder: Draw, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Values of 12 bits that were stored without scaling. A cache of the scan must not silence it."""
    monkeypatch.setattr("headstart.data.folder_walk.SETTLED_NS", 0)
    root = image_folder(train=3, val=2)
    for path in root.glob("*/*/*"):
        gray = np.asarray(Image.open(path).convert("L"), np.uint16)
        path.unlink()
        Image.fromarray(gray * (256 if "_01" in path.name else 16)).save(path.with_suffix(".png"))
    for _ in range(2):
        caplog.clear()
        build_manifest(ClassFolders(str(root)), DataConfig(), seed=0)
        (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
        assert "16-bit" in warning
        assert "of 65,535" in warning


def test_of_many_unreadable_files_the_first_are_named_and_the_others_counted(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    for path in root.glob("*/*/*_0[01].*"):
        path.write_bytes(b"")
    message = refusal(root)
    assert "12 " in message
    assert "7 more" in message
    assert len(message) < 1000


def test_unreadable_files_are_left_out_and_named_on_request(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    damaged = damage(root)
    manifest = scan(root, on_bad_file="skip")
    assert skipped(manifest).keys() == damaged.keys()
    assert len(manifest.samples) == 12
    assert not damaged.keys() & {sample.path for sample in manifest.samples}


def test_a_class_whose_images_are_all_unreadable_is_left_out_by_name(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    for path in (root / "val/red_checks").iterdir():
        path.write_bytes(b"")
    manifest = scan(root, on_bad_file="skip")
    assert manifest.classes == ("blue_waves", "green_stripes")
    assert f"{root}/val" in skipped(manifest)["red_checks"]
    shutil.rmtree(root / "train/red_checks")
    shutil.rmtree(root / "val/red_checks")
    assert scan(root).samples == manifest.samples


def test_a_folder_with_nothing_readable_is_refused(image_folder: Draw) -> None:
    root = image_folder(train=3)
    for path in root.glob("*/*"):
        path.write_bytes(b"")
    assert str(root) in refusal(root, on_bad_file="skip")


def test_a_link_to_nowhere_is_unreadable(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    (root / "train/red_checks/gone.jpg").symlink_to(root / "nowhere.jpg")
    assert "gone.jpg (No such file" in refusal(root)


# ------------------------------------------------------------------------------------------------- hash and split


def test_the_hash_survives_a_move_and_a_rename(image_folder: Draw, tmp_path: Path) -> None:
    root = image_folder(train=3, val=2)
    before = scan(root).sha256
    (root / "train/red_checks/red_checks_00.jpg").rename(root / "train/red_checks/zzz.jpeg")
    root.rename(tmp_path / "moved")
    assert scan(tmp_path / "moved").sha256 == before


def test_the_hash_of_a_folder_without_a_split_survives_a_rename(image_folder: Draw) -> None:
    root = image_folder(train=8)
    before = scan(root).sha256
    for number, path in enumerate(sorted((root / "red_checks").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed_{number}{path.suffix}"))
    assert scan(root).sha256 == before


def test_the_hash_changes_with_the_content(image_folder: Draw, draw_image: Callable[..., Image.Image]) -> None:
    root = image_folder(train=3, val=2)
    before = scan(root).sha256
    draw_image(2, 999).save(root / "train/red_checks/red_checks_00.jpg")
    assert scan(root).sha256 != before


def test_the_hash_changes_with_the_label(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    before = scan(root).sha256
    (root / "train/red_checks/red_checks_00.jpg").rename(root / "train/blue_waves/red.jpg")
    assert scan(root).sha256 != before


def test_the_hash_changes_with_the_split(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    before = scan(root).sha256
    (root / "train/red_checks/red_checks_00.jpg").rename(root / "val/red_checks/other.jpg")
    assert scan(root).sha256 != before


def test_a_folder_without_val_is_split_in_each_class(image_folder: Draw) -> None:
    manifest = scan(image_folder(train=8), val_fraction=0.25)
    assert counts(manifest) == {
        (split, label): count for label in manifest.classes for split, count in (("train", 6), ("val", 2))
    }


def test_the_split_is_a_function_of_the_seed(image_folder: Draw) -> None:
    root = image_folder(train=8)
    assert scan(root, seed=1) == scan(root, seed=1)
    assert scan(root, seed=1).sha256 != scan(root, seed=2).sha256


def test_the_number_of_threads_changes_nothing(tiny_data: Path) -> None:
    source = ClassFolders(str(tiny_data))
    assert scan(tiny_data) == build_manifest(source, DataConfig(val_fraction=0.25), seed=0, num_threads=4)


def test_copies_of_one_content_have_ids_of_their_own(image_folder: Draw) -> None:
    root = image_folder(train=4)
    first = root / "red_checks/red_checks_00.jpg"
    for name in ("copy_a.jpg", "copy_b.jpg"):
        shutil.copy(first, first.with_name(name))
    shutil.copy(first, root / "blue_waves/red.jpg")
    samples = scan(root).samples
    assert len(samples) == 15
    assert len({sample.id for sample in samples}) == 15
    assert len({sample.sha256 for sample in samples}) == 12


def test_the_table_has_a_row_per_sample(tiny_data: Path) -> None:
    manifest = scan(tiny_data)
    table = manifest.table()
    assert table.column_names == ["id", "path", "sha256", "split", "label"]
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (s.id, s.path, s.sha256, s.split, s.label) for s in manifest.samples
    ]


def test_the_folder_may_be_named_relative_to_where_we_are(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_data.parent)
    assert scan(tiny_data.name).sha256 == scan(tiny_data).sha256


def test_the_scan_writes_nothing(image_folder: Draw) -> None:
    root = image_folder(train=3, val=2)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    scan(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


# ------------------------------------------------------------------------------------------------- to evaluate on

CLASSES = ("blue_waves", "green_stripes", "red_checks")


def scan_to_evaluate(root: Path, **changes: Any) -> Manifest:
    settings = {"classes": CLASSES, "on_bad_file": "refuse", "trained_on": lambda sha256, path: False} | changes
    source = open_source(DataConfig(root=str(root)), to_evaluate=True)
    return build_eval_manifest(source, num_threads=1, **settings)


def test_a_folder_with_val_is_evaluated_on_it(tiny_data: Path) -> None:
    manifest = scan_to_evaluate(tiny_data)
    assert counts(manifest) == {("val", label): 5 for label in CLASSES}
    assert manifest.of("val") == scan(tiny_data).of("val")


def test_images_of_val_that_were_trained_on_do_not_count(tiny_data: Path) -> None:
    manifest = scan_to_evaluate(tiny_data, trained_on=lambda sha256, path: "_00" in path)
    assert len(manifest.samples) == 12
    assert set(skipped(manifest)) == {f"val/{label}/{label}_00.jpg" for label in CLASSES}


def test_a_folder_of_classes_is_evaluated_without_its_training_images(image_folder: Draw) -> None:
    root = image_folder(train=4)
    trained = {(sample.sha256, sample.path) for sample in scan(root).of("train")}
    manifest = scan_to_evaluate(root, trained_on=lambda sha256, path: (sha256, path) in trained)
    assert [s.path for s in manifest.samples] == [s.path for s in scan(root).of("val")]
    assert skipped(manifest).keys() == {path for _, path in trained}


def test_a_folder_that_was_all_trained_on_is_refused(image_folder: Draw) -> None:
    with pytest.raises(InputError, match="images"):
        scan_to_evaluate(image_folder(train=4), trained_on=lambda sha256, path: True)


def test_the_classes_are_those_of_the_model_in_its_order(image_folder: Draw) -> None:
    root = image_folder(train=2, classes=("red_checks", "blue_waves"))
    assert scan_to_evaluate(root).classes == CLASSES


def test_a_class_that_the_model_does_not_know_is_refused_by_name(image_folder: Draw) -> None:
    root = image_folder(train=2, classes=("blue_waves", "violet"))
    with pytest.raises(InputError, match=r"'violet'.*--on_bad_file skip"):
        scan_to_evaluate(root)
    manifest = scan_to_evaluate(root, on_bad_file="skip")
    assert len(manifest.samples) == 2
    assert list(skipped(manifest)) == ["violet"]


def test_a_single_class_can_be_evaluated(image_folder: Draw) -> None:
    assert len(scan_to_evaluate(image_folder(train=2, classes=("red_checks",))).samples) == 2


def test_unreadable_files_to_evaluate_are_refused_or_left_out(image_folder: Draw) -> None:
    root = image_folder(train=2)
    (root / "red_checks/red_checks_00.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"red_checks_00\.jpg \(empty"):
        scan_to_evaluate(root)
    manifest = scan_to_evaluate(root, on_bad_file="skip")
    assert list(skipped(manifest)) == ["red_checks/red_checks_00.jpg"]
    assert len(manifest.samples) == 5


def test_a_missing_folder_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        scan_to_evaluate(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------- photographs


def test_all_photographs_of_the_tutorial_are_found_except_the_placeholder(ants_and_bees: Path) -> None:
    manifest = scan(ants_and_bees)
    assert counts(manifest) == {
        ("train", "ants"): 123,
        ("train", "bees"): 121,
        ("val", "ants"): 70,
        ("val", "bees"): 83,
    }
    assert list(skipped(manifest)) == ["train/ants/imageNotFound.gif"]


def test_a_file_name_may_hold_colons(image_folder: Callable[..., Path], draw_image: Callable[..., Image.Image]) -> None:
    root = image_folder(train=2)
    draw_image(0, 9).save(root / "red_checks" / "a::b.jpg")
    assert "red_checks/a::b.jpg" in scan(root).samples.column("path")


@pytest.mark.parametrize(("train", "val"), [("Train", "Val"), ("training", "validation"), ("TRAIN", "valid")])
def test_split_folders_are_known_in_any_case_and_by_their_other_names(
    train: str, val: str, image_folder: Callable[..., Path]
) -> None:
    root = image_folder(train=2, val=1)
    (root / "train").rename(root / train)
    (root / "val").rename(root / val)
    assert len(scan(root).classes) == 3


def test_a_validation_folder_without_a_training_folder_is_not_a_class(image_folder: Callable[..., Path]) -> None:
    root = image_folder(train=2, val=1)
    for label in (root / "train").iterdir():
        label.rename(root / label.name)
    (root / "train").rmdir()
    with pytest.raises(InputError, match=r"val\b.*train\b.*--data\.split stratified"):
        scan(root)


def test_a_link_back_into_the_folder_counts_no_image_twice(image_folder: Callable[..., Path]) -> None:
    root = image_folder(train=3)
    before = len(scan(root).samples)
    (root / "red_checks" / "again").symlink_to(root / "red_checks", target_is_directory=True)
    assert len(scan(root).samples) == before


def test_a_file_name_that_is_not_unicode_is_refused(image_folder: Callable[..., Path]) -> None:
    root = image_folder(train=2)
    source = next((root / "red_checks").iterdir())
    try:
        shutil.copyfile(source, os.fsencode(root / "red_checks") + b"/\xff.jpg")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(InputError, match="UTF-8"):
        scan(root)


# ------------------------------------------------------------------------------------------ part of a large folder


def contents(manifest: Manifest, split: str) -> set[str]:
    return {sample.sha256 for sample in manifest.of(split)}


def test_a_limit_takes_part_of_the_training_images_and_all_validation_images_of_the_source(tiny_data: Path) -> None:
    whole, part, more = scan(tiny_data), scan(tiny_data, limit=9), scan(tiny_data, limit=10)
    assert {key: count for key, count in counts(part).items() if key[0] == "train"} == {
        ("train", label): 3 for label in whole.classes
    }
    assert part.of("val") == whole.of("val")
    assert contents(part, "train") < contents(more, "train") < contents(whole, "train")
    assert contents(scan(tiny_data, limit=9, seed=5), "train") == contents(part, "train")
    assert "27 of 36 training" in skipped(part)["data.limit 9"]
    assert scan(tiny_data, limit=99).samples == whole.samples
    assert "source" in part.split_by


def test_a_limit_reduces_a_new_split_on_both_sides_without_moving_an_image(image_folder: Draw) -> None:
    root = image_folder(train=20)
    whole, part = scan(root), scan(root, limit=12)
    assert len(part.of("train")) == 12
    assert len(part.of("val")) == 4
    assert len(whole.of("val")) == 15
    for side in ("train", "val"):
        assert contents(part, side) < contents(whole, side)
    assert "33 of 45 training" in skipped(part)["data.limit 12"]
    assert "11 of 15 validation" in skipped(part)["data.limit 12"]
    for word in ("25%", "stratified", "seed 0"):
        assert word in part.split_by
    assert "fold 1 of 3" in scan(root, split="stratified", folds=3, fold=1).split_by


def test_a_limit_decodes_only_what_it_chooses(image_folder: Draw) -> None:
    root, decoded = image_folder(train=12, val=2), []
    data = DataConfig(root=str(root), limit=6)

    def count(content: bytes) -> Image.Image:
        decoded.append(content)
        return decode(content)

    for rescan in (False, True):
        decoded.clear()
        build_manifest(open_source(data), replace(data, rescan=rescan), seed=0, decoder=count)
        assert len(decoded) == 6 + 6


def test_a_broken_image_counts_only_where_a_limit_chooses_it(image_folder: Draw) -> None:
    root = image_folder(train=6, val=2)
    chosen = {sample.path for sample in scan(root, limit=6).of("train")}
    others = [p for p in sorted(root.rglob("train/*/*")) if p.relative_to(root).as_posix() not in chosen]
    # a limit chooses the smallest hashes, so this content is chosen last
    others[-1].write_bytes(next(c for n in range(999) if hashlib.sha256(c := b"broken %d" % n).hexdigest() > "fe"))
    assert {sample.path for sample in scan(root, limit=6).of("train")} == chosen
    assert others[-1].name in refusal(root, limit=18)


def test_a_limit_below_the_number_of_classes_is_refused(tiny_data: Path) -> None:
    message = refusal(tiny_data, limit=2)
    for value in ("data.limit is 2", "3 classes", "at least 3"):
        assert value in message


def test_a_scan_that_is_interrupted_leaves_the_waiting_images_undone() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    def interrupted() -> None:
        with ThreadPoolExecutor(1) as pool, cancelled_on_error(pool):
            for number in range(200):
                pool.submit(work, number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(done) < 100
