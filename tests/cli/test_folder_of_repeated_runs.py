"""A command that needs one run, given a folder of repeated runs, names the runs inside."""

from pathlib import Path

import pytest
from support.runs import exit_code

import headstart
from headstart import InputError

COMMANDS = {
    "predict": ("{run}", "image.jpg"),
    "evaluate": ("{run}", "--data", "photos"),
    "export": ("{run}", "--format", "torchvision", "--out", "plain.safetensors"),
    "verify": ("{run}",),
    "inspect": ("{run}",),
    "serve": ("{run}", "--port", "0"),
    "push": ("{run}", "you/ants", "--dry-run"),
    "compare": ("{run}", "another"),
    "train": ("photos", "--model.weights", "{run}"),
    "choose": ("photos", "--weights", "{run}"),
}


@pytest.fixture
def five_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("five").mkdir()
    Path("five/config.yaml").write_text("{seed: 3, train: {seeds: 5, folds: 0}}\n")
    Path("image.jpg").touch()
    Path("photos/ants").mkdir(parents=True)
    Path("photos/ants/0.jpg").touch()
    return "five"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_runs_inside_are_named(command: str, five_seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, *(word.format(run=five_seeds) for word in COMMANDS[command])) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    for fragment in ("five holds 5 runs", "seed_3, seed_4", "such as five/seed_3"):
        assert fragment in complaint


def test_it_holds_no_images(five_seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", five_seeds) == 2
    assert "five is the folder of a run" in capsys.readouterr().err


def test_a_single_run_in_place_of_weights_names_its_model_file(
    five_seeds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("first").mkdir()
    Path("first/model.safetensors").touch()
    assert exit_code("train", "photos", "--model.weights", "first") == 2
    assert "name first/model.safetensors" in capsys.readouterr().err


def test_loading_it_in_python_names_them_too(five_seeds: str) -> None:
    with pytest.raises(InputError, match="five/seed_3"):
        headstart.load(five_seeds)
