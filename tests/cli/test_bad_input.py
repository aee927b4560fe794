"""A user's mistake: one line on stderr, exit code 2, nothing written."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from headstart.artifacts import ModelInfo, save_model
from headstart.cli import main
from headstart.model import build_model
from headstart.preprocess import Preprocess

Place = Callable[[], None]
"""Lays out what the command stumbles over, in the current folder, where data/ is sound."""

TRAIN = ("train", "--data.root", "data", "--out", "out", "--model.weights", "none", "--data.image_size", "32")
TRAIN = (*TRAIN, "--train.batch_size", "4", "--runtime.cpu", "true", "--data.num_workers", "0")
IMAGE = Path("data/train/red_checks/red_checks_00.jpg")


def nothing() -> None:
    pass


def cut_image() -> None:
    IMAGE.write_bytes(IMAGE.read_bytes()[:700])


def empty_image() -> None:
    IMAGE.write_bytes(b"")


def text_image() -> None:
    IMAGE.write_text("Not Found\n")


def empty_class() -> None:
    Path("data/train/violet").mkdir()


def one_class() -> None:
    for split in ("train", "val"):
        shutil.rmtree(f"data/{split}/red_checks")
        shutil.rmtree(f"data/{split}/blue_waves")


def no_val() -> None:
    shutil.rmtree("data/val")


def yaml_file(text: str) -> Place:
    def write() -> None:
        Path("mine.yaml").write_text(text)

    return write


def finished_run() -> None:
    Path("out").mkdir()
    Path("out/config.yaml").write_text("seed: 0\n")


def foreign_weights() -> None:
    save_file({"conv1.weight": torch.zeros(3, 3)}, "w.safetensors")


def text_weights() -> None:
    Path("w.safetensors").write_text("not weights")


def text_pth() -> None:
    Path("w.pth").write_text("not weights")


def foreign_model() -> None:
    Path("run").mkdir()
    save_file({"conv1.weight": torch.zeros(3, 3)}, "run/model.safetensors")


def text_model() -> None:
    Path("run").mkdir()
    Path("run/model.safetensors").write_text("not a model")


def model(*classes: str) -> Place:
    info = ModelInfo(
        measured_on="network",
        classes=classes,
        preprocess=Preprocess(32, 37),
        strategy="fine_tune",
        mixed_precision="no",
        channels_last=False,
        eval_batch_size=8,
        manifest_sha256="0" * 64,
        weights="none",
        weights_sha256=None,
        seed=0,
        versions={},
        metrics={},
    )

    def save() -> None:
        Path("run").mkdir()
        network = build_model(len(classes), backbone=None, head_init="zero", seed=0)
        save_model(Path("run/model.safetensors"), network, info)

    return save


def unlike_model() -> None:
    Path("other").mkdir()
    for name in ("a", "b"):
        Path("other", name).mkdir()
        Image.new("RGB", (64, 48)).save(f"other/{name}/x.png")
    model("a", "c")()


def foreign_folder() -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")


CASES: dict[str, tuple[Place, tuple[str, ...], tuple[str, ...]]] = {
    # name: what is laid out, the command, words of the message
    "unknown command": (nothing, ("trian",), ("trian", "did you mean train?")),
    "unknown command, none near": (nothing, ("frobnicate",), ("frobnicate", "headstart --help")),
    "no folder named": (nothing, ("train",), ("data.root", "--data.root DIR")),
    "missing folder": (nothing, (*TRAIN, "--data.root", "nowhere"), ("nowhere does not exist",)),
    "file as folder": (nothing, (*TRAIN, "--data.root", str(IMAGE)), (str(IMAGE), "is a file")),
    "empty class": (empty_class, TRAIN, ("violet holds no images",)),
    "one class": (one_class, TRAIN, ("single class, 'green_stripes'",)),
    "train without val": (no_val, TRAIN, ("no val",)),
    "truncated jpeg": (cut_image, TRAIN, ("red_checks_00.jpg", "truncated")),
    "zero bytes": (empty_image, TRAIN, ("red_checks_00.jpg", "0 bytes")),
    "text named jpg": (text_image, TRAIN, ("red_checks_00.jpg", "not an image")),
    "unknown option": (nothing, (*TRAIN, "--train.epoch", "3"), ("train.epoch", "did you mean train.epochs?")),
    "unknown key": (
        yaml_file("train: {epoch: 3}\n"),
        (*TRAIN, "--config", "mine.yaml"),
        ("mine.yaml", "train.epochs?"),
    ),
    "wrong type": (nothing, (*TRAIN, "--train.epochs", "many"), ("train.epochs is 'many'", "whole number")),
    "wrong type in file": (
        yaml_file("optim: {lr: fast}\n"),
        (*TRAIN, "--config", "mine.yaml"),
        ("optim.lr is 'fast'", "number"),
    ),
    "null in file": (yaml_file("train: {epochs: null}\n"), (*TRAIN, "--config", "mine.yaml"), ("train.epochs",)),
    "out of range": (nothing, (*TRAIN, "--optim.lr", "-1"), ("optim.lr is -1",)),
    "missing config": (nothing, (*TRAIN, "--config", "nope.yaml"), ("nope.yaml",)),
    "broken config": (yaml_file("train: {epochs: 3\n"), (*TRAIN, "--config", "mine.yaml"), ("not valid YAML",)),
    "out below a file": (nothing, (*TRAIN, "--out", f"{IMAGE}/run"), ("--out", "is a file")),
    "out is a file": (nothing, (*TRAIN, "--out", str(IMAGE)), ("--out", "is a file")),
    "out holds a run": (finished_run, TRAIN, ("out holds a run", "--train.resume auto")),
    "out is not empty": (nothing, (*TRAIN, "--out", "data"), ("data is not empty",)),
    "missing weights": (nothing, (*TRAIN, "--model.weights", "w.pth"), ("w.pth is not a file",)),
    "foreign weights": (
        foreign_weights,
        (*TRAIN, "--model.weights", "w.safetensors"),
        ("not a torchvision ResNet-18",),
    ),
    "text as safetensors": (text_weights, (*TRAIN, "--model.weights", "w.safetensors"), ("w.safetensors",)),
    "text as pth": (text_pth, (*TRAIN, "--model.weights", "w.pth"), ("w.pth",)),
    "accumulation does not divide": (
        nothing,
        (*TRAIN, "--train.batch_size", "32", "--train.accumulation", "5"),
        ("train.batch_size 32", "train.accumulation 5", "use 30 or 35"),
    ),
    "batch larger than the data": (
        nothing,
        (*TRAIN, "--train.batch_size", "13"),
        ("train.batch_size 13", "12 training"),
    ),
    "warm-up longer than the run": (nothing, (*TRAIN, "--optim.warmup_epochs", "99"), ("optim.warmup_epochs",)),
    "endless warm-up": (
        yaml_file("optim: {warmup_epochs: .inf}\n"),
        (*TRAIN, "--config", "mine.yaml"),
        ("optim.warmup_epochs",),
    ),
    "fp16 on a cpu": (nothing, (*TRAIN, "--runtime.mixed_precision", "fp16"), ("runtime.mixed_precision fp16",)),
    "no such checkpoint": (nothing, (*TRAIN, "--train.resume", "step_1"), ("train.resume step_1",)),
    "evaluate without arguments": (nothing, ("evaluate",), ("run", "headstart evaluate --help")),
    "evaluate a missing run": (nothing, ("evaluate", "run", "--data", "data"), ("run does not exist",)),
    "evaluate a folder without a model": (nothing, ("evaluate", "data", "--data", "data"), ("no model.safetensors",)),
    "evaluate a foreign model": (foreign_model, ("evaluate", "run", "--data", "data"), ("no headstart model",)),
    "evaluate a text": (text_model, ("evaluate", "run", "--data", "data"), ("cannot be read",)),
    "evaluate on a missing folder": (model("a", "b"), ("evaluate", "run", "--data", "nowhere"), ("nowhere does not",)),
    "evaluate on other classes": (unlike_model, ("evaluate", "run", "--data", "other"), ("'b'", "does not know")),
    "evaluate with an unknown option": (nothing, ("evaluate", "run", "--data", "data", "--x"), ("--x",)),
    "evaluate with an abbreviation": (nothing, ("evaluate", "run", "--dat", "data"), ("--data",)),
    "predict without images": (nothing, ("predict", "run"), ("paths",)),
    "predict a glob of nothing": (model("a", "b"), ("predict", "run", "data/*.tif"), ("data/*.tif", "no image")),
    "predict an empty folder": (empty_class, ("predict", "run", "data/train/violet"), ("violet", "no image")),
    "predict with a missing run": (nothing, ("predict", "run", str(IMAGE)), ("run does not exist",)),
    "predict into an unknown type": (model("a", "b"), ("predict", "run", "data", "--out", "p.xls"), (".xls", ".csv")),
    "predict into no folder": (
        model("a", "b"),
        ("predict", "run", "data", "--out", "no/p.csv"),
        ("no", "not a folder"),
    ),
    "a misspelt option of predict": (
        nothing,
        ("predict", "run", "data", "--topp", "3"),
        ("--topp", "did you mean --top?"),
    ),
    "a misspelt option of data check": (nothing, ("data", "check", "data", "--lables"), ("did you mean --labels?",)),
    "a misspelt data command": (nothing, ("data", "chek", "data"), ("data chek", "did you mean check?")),
    "a class folder": (
        nothing,
        ("data", "check", "data/train/red_checks"),
        ("no class folders, but", "name the folder above it"),
    ),
    "predict with a batch of 0": (nothing, ("predict", "run", "data", "--batch_size", "0"), ("--batch_size is 0",)),
    "predict with a batch of words": (nothing, ("predict", "run", "data", "--batch_size", "x"), ("--batch_size", "x")),
    "data without a name": (nothing, ("data",), ("demo",)),
    "data of an unknown name": (nothing, ("data", "dmeo", "x"), ("dmeo",)),
    "demo data into a foreign folder": (foreign_folder, ("data", "demo", "mine"), ("mine", "name a new folder")),
    "demo data into a file": (nothing, ("data", "demo", str(IMAGE)), (str(IMAGE),)),
    "demo data below a file": (nothing, ("data", "demo", f"{IMAGE}/x"), (str(IMAGE),)),
}


def tree(root: Path) -> dict[str, str]:
    """Every path below `root` with the hash of its content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(root.rglob("*"))
    }


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(
    name: str,
    image_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, argv, words = CASES[name]
    image_folder(train=4, val=2, name="data")
    monkeypatch.chdir(tmp_path)
    place()
    before = tree(tmp_path)
    assert before
    with pytest.raises(SystemExit) as end:
        main(argv)
    complaint = capsys.readouterr().err
    assert end.value.code == 2, complaint
    assert complaint.startswith("headstart: ")
    assert complaint.count("\n") == 1, complaint
    for word in words:
        assert word in complaint
    assert tree(tmp_path) == before


def test_a_folder_without_permission_is_refused_before_training(
    image_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image_folder(train=4, val=2, name="data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("NOT TESTED: this user may write everywhere (root)")
    with pytest.raises(SystemExit) as end:
        main([*TRAIN, "--out", "locked/run"])
    assert end.value.code == 2
    assert "no permission to write" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",), ("--version",)])
def test_help_and_version_end_well(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    assert "headstart" in capsys.readouterr().out


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert (end.value.code, capsys.readouterr().err) == (2, "")
