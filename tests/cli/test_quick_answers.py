"""Wrong commands: one sentence and exit code 2, before torch is imported, which takes long on slow machines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import draw_folder
from support.models import write_model

TRAIN = "train data --out new"
COMMANDS: dict[str, tuple[str, ...]] = {
    # command: fragments that the message must hold
    "trian data": ("trian", "train?"),
    "versoin": ("versoin", "verify?"),
    "probe data": ("probe", "choose"),
    "version": ("version", "headstart --version"),
    "check data": ("check", "headstart data check"),
    "data": ("check",),
    "labels.csv": ("labels.csv", "headstart --help"),
    "note.txt": ("note.txt", "headstart train note.txt"),
    "predict data run": ("headstart predict run data",),
    "train stopped": ("stopped", "headstart resume stopped"),
    "report stopped": ("stopped", "headstart resume stopped"),
    "train": ("headstart train DIR",),
    "train nowhere": ("nowhere",),
    "train nowhere --model.weights imagenet": ("nowhere",),
    "train --data nowhere": ("nowhere",),
    "train data other": ("other",),
    "train data --data other": ("data", "other"),
    "train note.txt": ("note.txt",),
    "train labels.docx": ("labels.docx",),
    "train empty": ("empty",),
    f"{TRAIN} --config fine_tunes": ("fine_tunes", "fine_tune?"),
    f"{TRAIN} --config missing.yaml": ("missing.yaml",),
    f"{TRAIN} --config broken.yaml": ("broken.yaml", "YAML"),
    f"{TRAIN} --config wrong.yaml": ("wrong.yaml", "train.epoch", "train.epochs?", "optim.speed"),
    f"{TRAIN} --config typed.yaml": ("typed.yaml", "train.epochs", "many", "data.hflip", "perhaps"),
    f"{TRAIN} --epochs 3": ("--epochs", "train.epochs"),
    f"{TRAIN} --train.epoch 3 --optim.speed 1": ("--train.epoch", "train.epochs?", "--optim.speed"),
    f"{TRAIN} --train.epochs many --optim.lr fast": ("train.epochs", "many", "optim.lr", "fast"),
    f"{TRAIN} --train.epochs 0": ("train.epochs", "0"),
    f"{TRAIN} --train.epochs": ("--train.epochs", "argument"),
    f"{TRAIN} --optim.lr -1": ("optim.lr", "-1"),
    f"{TRAIN} --strategy.name finetune": ("strategy.name", "finetune", "fine_tune"),
    f"{TRAIN} --model.backbone resnet19": ("resnet19", "resnet18?"),
    f"{TRAIN} --model.weights missing.pth": ("missing.pth",),
    f"{TRAIN} --model.weights bundeld": ("bundeld", "bundled?"),
    f"{TRAIN} --model.weights hub": ("hub", "resnet18"),
    f"{TRAIN} --model.backbone lite0 --model.weights bundled": ("bundled", "lite0"),
    f"{TRAIN} --data.image_size 16": ("data.image_size", "16", "32"),
    f"{TRAIN} --runtime.trackers tensorbord,wand": ("tensorbord", "wand"),
    f"{TRAIN} --config fine_tune --train.resume new/checkpoints/step_000003": ("step_000003", "auto"),
    f"{TRAIN} --train.resume new/checkpoints/step_000003": ("train.resume", "no checkpoints"),
    f"{TRAIN} --train.batch_size 10 --train.accumulation 3": ("train.batch_size 10", "train.accumulation 3"),
    "train data --out occupied": ("--out occupied", "not empty"),
    "train data --out note.txt/run": ("note.txt",),
    "train data --out old_run": ("old_run", "headstart resume"),
    "evaluate": ("RUN",),
    "evaluate nowhere --data data": ("nowhere",),
    "evaluate run --data nowhere": ("nowhere",),
    "evaluate occupied --data data": ("occupied", "model.safetensors"),
    "evaluate run --data data --out no/where.json": ("no/where.json",),
    "predict nowhere data": ("nowhere",),
    "predict run nowhere.jpg": ("nowhere.jpg",),
    "predict run empty": ("empty",),
    "predict run data --out table.xls": ("table.xls", ".csv"),
    "predict run data --out no/table.csv": ("no/table.csv",),
    "predict run data --top 0": ("--top", "0"),
    "predict run data --device gpu": ("--device", "gpu"),
    "predict run data --precision fp8": ("--precision", "fp8"),
    "predict note.txt data": ("note.txt",),
    "predict broken_run data": ("broken_run", "safetensors"),
    "export run --format onyx --out x.onnx": ("onyx", "onnx?"),
    "export run --format onnx --out x.pt": ("x.pt", ".onnx"),
    "export nowhere --format timm --out folder": ("nowhere",),
    "export run --format onnx --out no/x.onnx": ("no/x.onnx",),
    "compare old_run": ("two",),
    "compare run nowhere": ("summary.json",),
    "compare nowhere run": ("nowhere",),
    "report nowhere": ("nowhere",),
    "verify nowhere": ("nowhere",),
    "verify run --precision fp8": ("fp8",),
    "inspect nowhere": ("nowhere",),
    "inspect note.txt": ("note.txt",),
    "serve nowhere": ("nowhere",),
    "serve run --port eighty": ("--port", "eighty"),
    "push nowhere me/model": ("nowhere",),
    "watch nowhere --once": ("nowhere",),
    "choose nowhere": ("nowhere",),
    "choose data --backbones resnet19": ("resnet19", "resnet18?"),
    "choose data --folds 1": ("--folds", "1"),
    "data chek data": ("chek", "check?"),
    "data check nowhere": ("nowhere",),
    "data apply missing.csv --data data --out new": ("missing.csv",),
    "data bank --prune_unused never": ("--prune_unused", "never"),
    "bench data --data nowhere": ("nowhere",),
    "bench features --data nowhere": ("nowhere",),
    "doctor parity --data.root nowhere": ("nowhere",),
    "doctor parity --data.root data --steps 1": ("--steps", "5"),
}

RUN_ALL = """
import io, json, os, sys, time
import numpy, psutil, pyarrow.parquet, PIL.Image, yaml  # shared by the commands below; none of them imports torch
assert "torch" not in sys.modules

for number, line in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if child == 0:
        began = time.perf_counter()
        sys.stdout, sys.stderr, code = io.StringIO(), io.StringIO(), None
        try:
            from headstart.cli.main import main
            main(line.split(" "))
        except SystemExit as end:
            code = end.code
        found = {"code": code, "err": sys.stderr.getvalue(), "out": sys.stdout.getvalue(),
                 "torch": "torch" in sys.modules, "seconds": time.perf_counter() - began}
        with open(f"answer_{number}.json", "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.waitpid(child, 0)
"""


def prepare(folder: Path) -> None:
    """The folders and files that the commands name."""
    draw_folder(folder / "data", train=2, val=1)
    write_model(folder / "run")
    for name in ("empty", "occupied", "old_run", "broken_run"):
        (folder / name).mkdir()
    (folder / "note.txt").write_text("dear")
    (folder / "stopped").mkdir()
    for name in ("config.yaml", "manifest.parquet"):
        (folder / "stopped" / name).write_text("")
    (folder / "occupied" / "letter.txt").write_text("dear")
    (folder / "old_run" / "config.yaml").write_text("seed: 0\n")
    (folder / "broken_run" / "model.safetensors").write_text("no")
    (folder / "broken.yaml").write_text("train: {epochs: 3\n")
    (folder / "wrong.yaml").write_text("train: {epoch: 3}\noptim: {speed: 1}\n")
    (folder / "typed.yaml").write_text("train: {epochs: many}\ndata: {hflip: perhaps}\n")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """By command: exit code, output, and whether torch was imported. Each runs in a fork of one process."""
    folder = tmp_path_factory.mktemp("answers")
    prepare(folder)
    before = sorted(folder.rglob("*"))
    ran = subprocess.run(
        [sys.executable, "-c", RUN_ALL], cwd=folder, input=json.dumps(list(COMMANDS)), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = {}
    for number, command in enumerate(COMMANDS):
        answer = folder / f"answer_{number}.json"
        found[command] = json.loads(answer.read_text())
        answer.unlink()
    assert sorted(folder.rglob("*")) == before
    return found


def test_the_list_has_60_commands() -> None:
    assert len(COMMANDS) >= 60


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_is_one_sentence_without_torch(command: str, answers: dict[str, dict]) -> None:
    answer = answers[command]
    assert answer["code"] == 2, answer
    assert answer["out"] == ""
    assert answer["err"].startswith("headstart: "), answer
    assert answer["err"].count("\n") == 1, answer
    for fragment in COMMANDS[command]:
        assert fragment in answer["err"], answer
    assert not answer["torch"], answer
