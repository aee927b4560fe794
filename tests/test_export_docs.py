"""What docs/export.md tells others to write works as it stands, and answers as predict does."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from runs import small

import headstart
from headstart.export.command import FORMATS, export
from headstart.export.images import RunImages
from headstart.export.original import read_original
from headstart.training import run

PAGE = Path(__file__).parent.parent / "docs" / "export.md"
BLOCKS = re.findall(r"^```(python|js)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
NAMES = {
    "plain.safetensors": "torchvision",
    "for_transformers": "transformers",
    "for_timm": "timm",
    "model.onnx": "onnx-uint8",
    "program.pt2": "pt2",
    "for_openvino": "openvino",
}


@pytest.fixture(scope="module")
def folder(tiny_data, tmp_path_factory) -> Path:
    """An empty folder but for photo.jpg; and the run beside it."""
    place = tmp_path_factory.mktemp("docs")
    config = small(tiny_data, place / "run", strategy="frozen_head", train={"epochs": 1})
    run(config)
    (place / "empty").mkdir()
    shutil.copy(sorted((tiny_data / "val").rglob("*.jpg"))[0], place / "empty" / "photo.jpg")
    return place / "empty"


def prepared(block: str, folder: Path) -> dict[str, float]:
    """Export what the block opens; what predict answers."""
    path = folder.parent / "run" / "model.safetensors"
    wanted = [name for name in NAMES if name in block]
    assert len(wanted) == 1
    if not (folder / wanted[0]).exists():
        original = read_original(path, RunImages(missing="not needed here"))
        export(original, FORMATS[NAMES[wanted[0]]], folder / wanted[0])
    found = headstart.load(path, device="cpu", precision="fp32").predict(folder / "photo.jpg")[0].probabilities
    assert found is not None
    return found


def test_the_page_has_a_block_for_every_way() -> None:
    assert len(BLOCKS) == 7
    assert {name for _, block in BLOCKS for name in NAMES if name in block} == set(NAMES)


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # short examples leave a file to the garbage collector
def test_the_python_on_the_page_answers_as_predict_does(block, folder, monkeypatch) -> None:
    expected = prepared(block, folder)
    monkeypatch.chdir(folder)
    names: dict[str, dict[str, float]] = {}
    exec(block, names)
    assert names["answer"].keys() == expected.keys()
    assert [names["answer"][name] for name in expected] == pytest.approx(list(expected.values()), abs=2e-3)


def test_the_javascript_on_the_page_answers_as_predict_does(folder) -> None:
    modules = os.environ.get("HEADSTART_TEST_NODE")
    if modules is None:
        pytest.skip("NOT TESTED IN JAVASCRIPT: set HEADSTART_TEST_NODE to a folder with onnxruntime-node and sharp")
    (block,) = (block for kind, block in BLOCKS if kind == "js")
    expected = prepared(block, folder)
    (folder / "page.mjs").write_text(block)
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(Path(modules) / "node_modules")
    done = subprocess.run(["node", "page.mjs"], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[name] for name in expected] == pytest.approx(list(expected.values()), abs=2e-3)
