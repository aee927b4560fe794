"""A user's mistake: one line on stderr, exit code 2, nothing written.

The wording of a message is free. It has to name the value, key, option or file at fault, and what to use instead."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.images import draw_folder

from headstart.backbones import RESNET18
from headstart.cli.main import main
from headstart.data.transforms import Preprocess
from headstart.model.build import build_model
from headstart.model.model_file import ModelInfo, save_model

Place = Callable[[], None]
"""Prepares the mistake in the current folder, where data/ holds good images."""

TRAIN = ("train", "--data.root", "data", "--out", "out", "--model.weights", "none", "--data.image_size", "32")
TRAIN = (
    *TRAIN,
    "--strategy.name",
    "fine_tune",
    "--train.batch_size",
    "4",
    "--runtime.cpu",
    "true",
    "--data.num_workers",
    "0",
)
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


def empty_class_and_model() -> None:
    empty_class()
    model("a", "b")()


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
        network = build_model(RESNET18, len(classes), tensors=None, head_init="zero", seed=0)
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
    # name: what is prepared, the command, fragments that the message must hold
    "unknown command": (nothing, ("trian",), ("trian", "train?")),
    "unknown command, none near": (nothing, ("frobnicate",), ("frobnicate", "headstart --help")),
    "no folder named": (nothing, ("train",), ("data.root", "headstart train DIR")),
    "missing folder": (nothing, (*TRAIN, "--data.root", "nowhere"), ("nowhere",)),
    "file as folder": (nothing, (*TRAIN, "--data.root", str(IMAGE)), (str(IMAGE), "file", "folder")),
    "empty class": (empty_class, TRAIN, ("data/train/violet",)),
    "one class": (one_class, TRAIN, ("green_stripes", "single class")),
    "train without val": (no_val, TRAIN, ("val", "--data.split stratified")),
    "truncated jpeg": (cut_image, TRAIN, ("red_checks_00.jpg", "truncated", "--data.on_bad_file skip")),
    "zero bytes": (empty_image, TRAIN, ("red_checks_00.jpg", "empty", "--data.on_bad_file skip")),
    "text named jpg": (text_image, TRAIN, ("red_checks_00.jpg", "not an image", "--data.on_bad_file skip")),
    "unknown option": (nothing, (*TRAIN, "--train.epoch", "3"), ("--train.epoch", "train.epochs?")),
    "unknown key": (
        yaml_file("train: {epoch: 3}\n"),
        (*TRAIN, "--config", "mine.yaml"),
        ("mine.yaml", "train.epochs?"),
    ),
    "wrong type": (nothing, (*TRAIN, "--train.epochs", "many"), ("train.epochs", "many", "number")),
    "wrong type in file": (
        yaml_file("optim: {lr: fast}\n"),
        (*TRAIN, "--config", "mine.yaml"),
        ("optim.lr", "fast", "number"),
    ),
    "null in file": (yaml_file("train: {epochs: null}\n"), (*TRAIN, "--config", "mine.yaml"), ("train.epochs", "null")),
    "out of range": (nothing, (*TRAIN, "--optim.lr", "-1"), ("optim.lr", "-1")),
    "missing config": (nothing, (*TRAIN, "--config", "nope.yaml"), ("nope.yaml", "fine_tune")),
    "broken config": (
        yaml_file("train: {epochs: 3\n"),
        (*TRAIN, "--config", "mine.yaml"),
        ("mine.yaml", "YAML", "line 2"),
    ),
    "out below a file": (nothing, (*TRAIN, "--out", f"{IMAGE}/run"), ("--out", str(IMAGE), "file")),
    "out is a file": (nothing, (*TRAIN, "--out", str(IMAGE)), ("--out", str(IMAGE), "file")),
    "out holds a run": (finished_run, TRAIN, ("--out out", "headstart resume out")),
    "out is not empty": (nothing, (*TRAIN, "--out", "data"), ("--out data", "not empty")),
    "missing weights": (nothing, (*TRAIN, "--model.weights", "w.pth"), ("w.pth", "imagenet")),
    "foreign weights": (
        foreign_weights,
        (*TRAIN, "--model.weights", "w.safetensors"),
        ("w.safetensors", "ResNet-18", "bn1.bias"),
    ),
    "text as safetensors": (text_weights, (*TRAIN, "--model.weights", "w.safetensors"), ("w.safetensors", "header")),
    "text as pth": (text_pth, (*TRAIN, "--model.weights", "w.pth"), ("w.pth", ".safetensors")),
    "accumulation does not divide": (
        nothing,
        (*TRAIN, "--train.batch_size", "32", "--train.accumulation", "5"),
        ("train.batch_size 32", "train.accumulation 5", "30", "35"),
    ),
    "BatchNorm on one image of 32 px": (
        nothing,
        (*TRAIN, "--train.batch_size", "1", "--data.image_size", "32"),
        ("BatchNorm", "32 px", "train.batch_size", "strategy.batchnorm freeze"),
    ),
    "endless warm-up": (
        yaml_file("optim: {warmup_epochs: .inf}\n"),
        (*TRAIN, "--config", "mine.yaml"),
        ("optim.warmup_epochs", "inf"),
    ),
    "fp16 on a cpu": (nothing, (*TRAIN, "--runtime.mixed_precision", "fp16"), ("runtime.mixed_precision fp16", "bf16")),
    "no such checkpoint": (nothing, (*TRAIN, "--train.resume", "step_1"), ("train.resume step_1", "auto")),
    "evaluate without arguments": (nothing, ("evaluate",), ("RUN", "headstart evaluate --help")),
    "evaluate a missing run": (nothing, ("evaluate", "run", "--data", "data"), ("run", "model.safetensors")),
    "evaluate a folder without a model": (
        nothing,
        ("evaluate", "data", "--data", "data"),
        ("data", "model.safetensors"),
    ),
    "evaluate a foreign model": (
        foreign_model,
        ("evaluate", "run", "--data", "data"),
        ("run/model.safetensors", "headstart model"),
    ),
    "evaluate a text": (text_model, ("evaluate", "run", "--data", "data"), ("run/model.safetensors", "header")),
    "evaluate on a missing folder": (model("a", "b"), ("evaluate", "run", "--data", "nowhere"), ("nowhere",)),
    "evaluate on other classes": (
        unlike_model,
        ("evaluate", "run", "--data", "other"),
        ("other", "'b'", "a, c", "--on_bad_file skip"),
    ),
    "evaluate with an unknown option": (nothing, ("evaluate", "run", "--data", "data", "--x"), ("--x",)),
    "evaluate with an abbreviation": (nothing, ("evaluate", "run", "--dat", "data"), ("--data",)),
    "predict without images": (nothing, ("predict", "run"), ("IMAGES",)),
    "predict a glob of nothing": (model("a", "b"), ("predict", "run", "data/*.tif"), ("data/*.tif",)),
    "predict an empty folder": (empty_class_and_model, ("predict", "run", "data/train/violet"), ("data/train/violet",)),
    "predict with a missing run": (nothing, ("predict", "run", str(IMAGE)), ("run", "model.safetensors")),
    "predict into an unknown type": (model("a", "b"), ("predict", "run", "data", "--out", "p.xls"), (".xls", ".csv")),
    "predict into no folder": (
        model("a", "b"),
        ("predict", "run", "data", "--out", "no/p.csv"),
        ("--out no/p.csv",),
    ),
    "a misspelt option of predict": (
        nothing,
        ("predict", "run", "data", "--topp", "3"),
        ("--topp", "--top?"),
    ),
    "a misspelt option of data check": (nothing, ("data", "check", "data", "--lables"), ("--lables", "--labels?")),
    "a misspelt data command": (nothing, ("data", "chek", "data"), ("chek", "check?")),
    "a class folder": (
        nothing,
        ("data", "check", "data/train/red_checks"),
        ("data/train/red_checks", "4 images"),
    ),
    "predict with a batch of 0": (nothing, ("predict", "run", "data", "--batch_size", "0"), ("--batch_size", "0", "1")),
    "predict with a batch of words": (nothing, ("predict", "run", "data", "--batch_size", "x"), ("--batch_size", "x")),
    "data without a name": (nothing, ("data",), ("demo",)),
    "data of an unknown name": (nothing, ("data", "dmeo", "x"), ("dmeo", "demo?")),
    "demo data into a foreign folder": (foreign_folder, ("data", "demo", "mine"), ("mine", "demo data", "seed 0")),
    "demo data into a file": (nothing, ("data", "demo", str(IMAGE)), (str(IMAGE),)),
    "demo data below a file": (nothing, ("data", "demo", f"{IMAGE}/x"), (str(IMAGE),)),
    "demo data of few images": (nothing, ("data", "demo", "new", "--images", "5"), ("--images", "5", "2624")),
    "demo data of a share": (nothing, ("data", "demo", "new", "--val_fraction", "2"), ("--val_fraction", "2")),
    "a demo in a foreign folder": (foreign_folder, ("demo", "mine"), ("mine", "new folder")),
    "a demo in a file": (nothing, ("demo", str(IMAGE)), (str(IMAGE), "another place")),
    "a demo with two folders": (nothing, ("demo", "a", "b"), ("argument b",)),
    "completion of another shell": (nothing, ("completion", "tcsh"), ("tcsh", "bash, zsh, fish")),
}


def tree(root: Path) -> dict[str, str]:
    """Every path below `root` with the hash of its content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture(scope="module")
def good_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("good") / "data", train=4, val=2)


@pytest.fixture
def current_folder(good_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with good images in data/."""
    shutil.copytree(good_images, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_reported_in_one_line_and_nothing_is_written(
    name: str, current_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, argv, fragments = CASES[name]
    prepare()
    before = tree(current_folder)
    assert before
    with pytest.raises(SystemExit) as end:
        main(argv)
    complaint = capsys.readouterr().err
    assert end.value.code == 2, complaint
    assert complaint.startswith("headstart: ")
    assert complaint.count("\n") == 1, complaint
    for fragment in fragments:
        assert fragment in complaint
    assert tree(current_folder) == before


def test_a_folder_without_permission_is_refused_before_training(
    current_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("locked").mkdir(mode=0o555)
    if os.access("locked", os.W_OK):
        pytest.skip("NOT TESTED: this user may write everywhere (root)")
    with pytest.raises(SystemExit) as end:
        main([*TRAIN, "--out", "locked/run"])
    assert end.value.code == 2
    complaint = capsys.readouterr().err
    assert "permission" in complaint
    assert "locked" in complaint


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",), ("--version",)])
def test_help_and_version_exit_with_0(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    assert "headstart" in capsys.readouterr().out


def test_only_the_first_process_prints_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert (end.value.code, capsys.readouterr().err) == (2, "")
