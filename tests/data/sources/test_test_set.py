"""A test set is held out in every source: it takes no part in training, and evaluate finds it without --data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.images import CLASSES, draw, draw_folder
from support.layouts import WAYS
from support.runs import exit_code, small

import headstart
from headstart.config import DataConfig, RunConfig
from headstart.data.eval_manifest import build_eval_manifest
from headstart.data.manifest import build_manifest
from headstart.data.samples import Manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data.sources.open import open_source
from headstart.data_doctor.check import check_files
from headstart.data_doctor.quick_check import describe_data
from headstart.errors import InputError
from headstart.training.next_commands import next_commands
from headstart.training.run import run

LAYOUTS: list[Callable[[Path, Path], str]] = [lambda root, out: str(root), *WAYS]
NAMES = ["as_folder", *(way.__name__ for way in WAYS)]


def draw_test(root: Path, name: str = "test", *, each: int = 2, classes: tuple[str, ...] = CLASSES) -> Path:
    for code, label in enumerate(classes):
        (root / name / label).mkdir(parents=True)
        for k in range(each):
            draw(code, 500 + k).save(root / name / label / f"{k}.png")
    return root


def scan(root: Path | str, **changes: Any) -> Manifest:
    data = DataConfig(**{"root": str(root), "val_fraction": 0.25} | changes)
    return build_manifest(open_source(data), data, seed=0)


def evaluated(root: Path | str, **changes: Any) -> Manifest:
    source = open_source(DataConfig(root=str(root)), to_evaluate=True)
    never = {"classes": CLASSES, "on_bad_file": "refuse", "trained_on": lambda sha256, path: False}
    return build_eval_manifest(source, **never | changes)


@pytest.mark.parametrize("way", LAYOUTS, ids=NAMES)
def test_a_test_set_takes_no_part_and_is_evaluated(
    way: Callable[[Path, Path], str], image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = image_folder(train=4, val=2)
    without = scan(folder).sha256
    (tmp_path / "out").mkdir()
    root = way(draw_test(folder), tmp_path / "out")
    found = scan(root)
    assert found.sha256 == without
    assert found.has_test
    assert found.num_test in (6, None)  # the images of shards are not counted
    assert ("6 test images are held out" if found.num_test else "test images are held out") in describe_data(found)
    assert "headstart evaluate RUN" in describe_data(found)
    assert len(evaluated(root, split="test").samples) == 6
    assert len(evaluated(root).samples) == 6  # the split that is held out in training: val


@pytest.mark.parametrize("way", LAYOUTS, ids=NAMES)
def test_without_val_the_validation_images_come_from_train(way: Callable[[Path, Path], str], tmp_path: Path) -> None:
    (folder := tmp_path / "images").mkdir()
    draw_folder(folder / "train", train=8, val=None)
    (tmp_path / "out").mkdir()
    root = way(draw_test(folder), tmp_path / "out")
    found = scan(root)
    assert (len(found.of("train")), len(found.of("val"))) == (18, 6)
    assert found.split_by.startswith("25% of train held out by headstart")
    assert found.sha256 == scan(folder / "train").sha256
    assert len(evaluated(root).samples) == 6
    assert not {s.sha256 for s in evaluated(root).samples} & {s.sha256 for s in found.samples}


@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "TEST"), ("train", "testing")])
def test_a_test_folder_has_two_names_in_any_case(names: tuple[str, str], tmp_path: Path) -> None:
    draw_folder(tmp_path / names[0], train=4, val=None)
    found = scan(draw_test(tmp_path, names[1]))
    assert found.num_test == 6
    assert len(found.samples) == 12


def test_beside_class_folders_it_is_a_test_set_if_it_has_their_classes(image_folder: Callable[..., Path]) -> None:
    found = scan(draw_test(image_folder(train=4)))
    assert found.classes == CLASSES
    assert (len(found.samples), found.num_test) == (12, 6)
    other = image_folder(train=4, name="other")
    found = scan(draw_test(other, classes=("left", "right")))
    assert found.classes == (*CLASSES[:3], "test")
    assert not found.has_test


def test_a_test_set_alone_can_be_evaluated_and_not_trained_on(tmp_path: Path) -> None:
    root = draw_test(tmp_path)
    assert len(evaluated(root).samples) == 6
    with pytest.raises(InputError, match="test"):
        scan(root)


def test_test_images_without_classes_are_named(tmp_path: Path) -> None:
    draw_folder(tmp_path / "train", train=4, val=None)
    (tmp_path / "test").mkdir()
    draw(0, 500).save(tmp_path / "test/0.png")
    found = scan(tmp_path)
    assert (len(found.of("train")), len(found.of("val"))) == (9, 3)
    assert [one.path for one in found.skipped] == ["test"]
    assert "no classes" in describe_data(found)
    with pytest.raises(InputError, match="no images with a class"):
        evaluated(tmp_path, split="test")


def test_an_empty_class_of_the_test_set_is_no_obstacle(image_folder: Callable[..., Path]) -> None:
    root = draw_test(image_folder(train=4, val=2))
    (root / "test" / "unknown").mkdir()
    assert [one.path for one in scan(root).skipped] == ["test/unknown"]


def test_limit_and_folds_leave_it_out(image_folder: Callable[..., Path]) -> None:
    root = draw_test(image_folder(train=8, val=2))
    assert len(scan(root, limit=6).of("train")) == 6
    folds = [scan(root, split="stratified", folds=3, fold=fold) for fold in range(3)]
    assert {len(fold.samples) for fold in folds} == {30}
    assert {fold.num_test for fold in folds} == {6}


def test_the_data_check_knows_the_split(image_folder: Callable[..., Path]) -> None:
    root = draw_test(image_folder(train=4, val=2))
    assert {split for split, _ in check_files(ClassFolders(str(root))).counts} == {"train", "val", "test"}
    shutil.rmtree(root / "val")
    assert "missing_split" not in {finding.kind for finding in check_files(ClassFolders(str(root))).findings}


@pytest.mark.slow
def test_evaluate_without_data_takes_the_test_set(
    image_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, out = draw_test(image_folder(train=6, val=2)), tmp_path / "run"
    run(small(root, out, strategy="frozen_head", train={"epochs": 1}))
    printed = capsys.readouterr().out
    assert "6 test images are held out" in printed
    command = f"headstart evaluate {out}"
    assert command in printed.partition("next:")[2]
    assert command in (out / "report.html").read_text()
    assert "6 test images" in (out / "README.md").read_text()
    assert exit_code("evaluate", out, "--out", tmp_path / "test.json") == 0
    assert f"test images of {root}" in capsys.readouterr().out
    assert json.loads((tmp_path / "test.json").read_text())["n"] == 6
    assert headstart.evaluate(out).n == 6
    assert headstart.evaluate(out, split="val").n == 6
    shutil.rmtree(root / "test")
    assert exit_code("evaluate", out) == 2
    message = capsys.readouterr().err
    assert "no split 'test'" in message
    assert "--data" in message
    (out / "config.yaml").unlink()
    assert exit_code("evaluate", out / "model.safetensors") == 2
    assert "--data" in capsys.readouterr().err


def test_another_split_is_suggested_only_where_there_is_one(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"splits are: train, val; .*, or another --split$"):
        evaluated(image_folder(train=1, val=1), split="test")
    draw_folder(tmp_path / "plain", train=2, val=None)
    with pytest.raises(InputError, match=r"splits are: none; .* with --data$"):
        evaluated(tmp_path / "plain", split="test")


def test_the_suggested_evaluation_skips_what_it_would_refuse(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = draw_test(image_folder(train=2, val=1))

    def suggested(**changes: Any) -> str:
        data = DataConfig(root=str(root), **changes)
        config = RunConfig(data=data)
        return next(line for line in next_commands(tmp_path, config, scan(root, **changes)) if "evaluate" in line)

    assert "--on_bad_file" not in suggested()
    assert suggested(on_bad_file="skip").endswith("--on_bad_file skip")
    draw_test(root, "test/purple", classes=("",))
    assert scan(root).only_in_test == ("purple",)
    assert suggested().endswith("--on_bad_file skip")
