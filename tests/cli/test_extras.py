"""A command that lacks an optional package prints the line that installs it; README lists the extras."""

import importlib.util
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REPOSITORY
from support.models import write_model
from support.runs import exit_code

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"]) - {"test", "dev"}

COMMANDS = {
    "onnx": ("export", "{run}", "--format", "onnx", "--out", "m.onnx"),
    "transformers": ("export", "{run}", "--format", "transformers", "--out", "m"),
    "openvino": ("export", "{run}", "--format", "openvino", "--out", "m"),
    "demo": ("data", "demo", "cells"),
    "lite": ("choose", "{data}", "--backbones", "lite1", "--sizes", "32", "--weights", "imagenet"),
}
"""By extra; tests/serve has the one for serve."""


@pytest.fixture
def no_optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    names = ("onnx", "onnxruntime", "onnxscript", "transformers", "openvino", "elpv_dataset", "efficientnet_lite1")

    def find_spec(name: str, package: str | None = None) -> object:
        return None if name.startswith(names) else find(name, package)

    for place in ("importlib.util.find_spec", "headstart.model.weight_sources.find_spec"):
        monkeypatch.setattr(place, find_spec)


def test_readme_lists_every_extra_and_no_other() -> None:
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Extras")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    listed = {name for _, names, *_ in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed | {"export"} == EXTRAS
    assert all(len(what.strip()) > 10 for _, _, what, *_ in rows)
    assert set(COMMANDS) | {"serve", "export", "heic"} == EXTRAS


@pytest.mark.parametrize("extra", COMMANDS)
def test_the_line_that_installs_it_is_printed(
    extra: str,
    image_folder: Callable[..., Path],
    no_optional_packages: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run, data = write_model(tmp_path / "run"), image_folder(train=6, val=2)
    before = sorted(tmp_path.iterdir())
    assert exit_code(*(word.format(run=run, data=data) for word in COMMANDS[extra])) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert f"pip install 'headstart[{extra}]'" in complaint
    assert sorted(tmp_path.iterdir()) == before
