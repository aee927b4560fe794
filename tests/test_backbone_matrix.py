"""Every command works for every backbone: one line of the matrix in the normal suite, the rest with --extended."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.images import CLASSES, draw_folder
from support.runs import RUN_FILES, lines, small, stopped_at, summary, without_times
from support.serving import running

import headstart
from headstart.cli.main import main
from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.exporters.formats import FORMATS, parity_file
from headstart.model.resnet import KINDS
from headstart.report.gallery import MAX_UNCONFIDENT
from headstart.training.run import run

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Line:
    """map_side: of Grad-CAM, in cells; plain: the library with which the card opens the model file."""

    backbone: str
    weights: str
    image_size: int
    map_side: int
    plain: str = "timm"


LINES = {
    line.backbone: line
    for line in (
        Line("resnet18", "bundled", 32, 1, "torchvision"),
        Line("resnet50", "none", 32, 1, "torchvision"),
        Line("lite0", "imagenet", 64, 2),
        Line("timm:test_convnext", "none", 32, 1),
        Line("timm:test_vit", "none", 160, 10),
    )
}
SHORT = "lite0"  # the line of the normal suite
EXPORTS_OF_ALL = [name for name in FORMATS if name not in ("torchvision", "int8")]


def exit_code(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return end.value.code


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """3 classes, 6 training and 3 validation images each."""
    return draw_folder(tmp_path_factory.mktemp("matrix") / "images", train=6, val=3)


@pytest.fixture(scope="module")
def config_of(images, tmp_path_factory) -> Callable[..., RunConfig]:
    """config_of(line, strategy): a run of few steps that is not started."""
    folder = tmp_path_factory.mktemp("runs")

    def config(line: Line, strategy: str, *, bank: bool = False, **sections: dict) -> RunConfig:
        name = f"{line.backbone.replace(':', '_')}-{strategy}-{'-'.join(sections)}-{'bank' if bank else 'images'}"
        small_steps = {
            "data": {"image_size": line.image_size},
            "train": {"epochs": 1, "batch_size": 6, "eval_batch_size": 9},
            "model": {"backbone": line.backbone, "weights": line.weights},
            "runtime": {"bank": str(folder / "bank")},
        }
        changes = {key: small_steps.get(key, {}) | sections.get(key, {}) for key in small_steps | sections}
        made = small(images, folder / name, strategy=strategy, **changes)
        return replace(made, strategy=replace(made.strategy, features="bank")) if bank else made

    return config


@pytest.fixture(scope="module")
def trained(config_of) -> Callable[[Line], Path]:
    """trained(line): a head on the feature bank; trained on first use. Do not write in it."""
    found: dict[str, Path] = {}

    def get(line: Line) -> Path:
        if line.backbone not in found:
            found[line.backbone] = run(config_of(line, "frozen_head", bank=True))
        return found[line.backbone]

    return get


@pytest.fixture(params=LINES)
def line(request) -> Line:
    return LINES[request.param]


def check_the_run(folder: Path, line: Line) -> None:
    assert {path.name for path in folder.iterdir()} >= RUN_FILES - {"checkpoints", "train_batch.png"}
    assert summary(folder)["val"]["n"] == 9
    assert headstart.load(folder).info.backbone == line.backbone
    card = (folder / "README.md").read_text()
    backbone = headstart.load(folder).backbone
    pretrained = line.weights == "imagenet"
    assert (f"license: {backbone.license}" in card, f"base_model: {backbone.base_model}" in card) == (pretrained,) * 2
    assert backbone.title in card
    assert backbone.title in (folder / "report.html").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", card.partition(f"In plain {line.plain}:")[2], re.M | re.S)[:1]
    names: dict = {}
    exec(program.replace("model.safetensors", str(folder / "model.safetensors")), names)
    assert not names["model"].training


def check_predictions(folder: Path, images: Path, tmp_path: Path) -> None:
    """The probabilities of predict are those that the run was evaluated with, whatever the batches."""
    assert exit_code("predict", folder, images / "val", "--uncalibrated", "--out", tmp_path / "p.csv") == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        predicted = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert exit_code("predict", folder, images / "val", "--embeddings", "--out", tmp_path / "p.parquet") == 0
    embeddings = pq.read_table(tmp_path / "p.parquet").column("embedding").to_pylist()
    assert {len(row) for row in embeddings} == {headstart.load(folder).backbone.features}
    assert np.std(embeddings) > 0
    evaluated = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert len(predicted) == len(evaluated) == 9
    for row in evaluated:
        found = predicted[Path(row["path"]).name]
        assert found["predicted"] == row["predicted"]
        probabilities = [float(found[f"probability_{name}"]) for name in CLASSES]
        assert probabilities == pytest.approx(row["probabilities"], abs=1e-6)


def check_export(name: str, folder: Path, out_folder: Path) -> None:
    out = out_folder / f"model{FORMATS[name].suffix}"
    assert exit_code("export", folder, "--format", name, "--out", out) == 0
    parity = json.loads(parity_file(out, FORMATS[name]).read_text())["parity"]
    assert parity["validation"]["n"] == 9
    assert all(change > parity["tolerance"] for change in parity["visible"].values())


def test_a_line_of_the_matrix(images, trained, tmp_path, capsys) -> None:
    line = LINES[SHORT]
    folder = trained(line)
    check_the_run(folder, line)
    check_predictions(folder, images, tmp_path)
    assert exit_code("verify", folder) == 0
    check_export("timm", folder, tmp_path)


@pytest.mark.extended
class TestEveryBackbone:
    def test_trains_a_head_on_the_bank(self, line, trained) -> None:
        check_the_run(trained(line), line)

    @pytest.mark.parametrize("strategy", ["frozen_head", "fine_tune", "probe_then_tune"])
    def test_trains_on_images(self, line, strategy, config_of) -> None:
        folder = run(config_of(line, strategy))
        check_the_run(folder, line)
        assert all(np.isfinite(row["loss"]) for row in lines(folder) if "loss" in row)

    def test_resumes_to_the_same_bits(self, line, config_of, images, tmp_path) -> None:
        every_step = {"epochs": 2, "checkpoint_steps": 1, "resume": "auto"}
        straight = run(config_of(line, "fine_tune", train=every_step, data={"cache": "off"}))
        config = replace(
            config_of(line, "fine_tune", train=every_step, data={"cache": "off"}), out=str(tmp_path / "run")
        )
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        stopped = stopped_at(12 + 14, images, tmp_path / "config.yaml")
        assert stopped.returncode == 143, stopped.stderr
        assert 1 <= len(lines(tmp_path / "run")) < len(lines(straight))
        run(config)
        assert (tmp_path / "run" / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
        assert without_times(lines(tmp_path / "run")) == without_times(lines(straight))

    def test_predicts_what_the_run_was_evaluated_with(self, line, images, trained, tmp_path) -> None:
        check_predictions(trained(line), images, tmp_path)

    def test_is_evaluated_verified_inspected_reported_and_compared(
        self, line, images, trained, config_of, tmp_path, capsys
    ) -> None:
        folder = trained(line)
        assert exit_code("evaluate", folder, "--data", images, "--out", tmp_path / "e.json") == 0
        assert json.loads((tmp_path / "e.json").read_text())["correct"] == summary(folder)["val"]["correct"]
        assert exit_code("verify", folder) == 0
        capsys.readouterr()
        assert exit_code("inspect", folder) == 0
        assert line.backbone in capsys.readouterr().out
        before = (folder / "README.md").read_text()
        assert exit_code("report", folder) == 0
        assert (folder / "README.md").read_text() == before
        page = (folder / "report.html").read_text()
        assert page.count("Grad-CAM of the same image for") >= MAX_UNCONFIDENT
        other = run(config_of(line, "frozen_head", optim={"lr": 0.01}))
        assert exit_code("compare", folder, other) == 0

    @pytest.mark.parametrize("name", EXPORTS_OF_ALL)
    def test_is_exported(self, name, line, trained, tmp_path) -> None:
        check_export(name, trained(line), tmp_path)

    def test_is_exported_to_torchvision_if_it_has_the_network(self, line, trained, tmp_path, capsys) -> None:
        if line.backbone in KINDS:
            check_export("torchvision", trained(line), tmp_path)
            return
        out = tmp_path / "model.safetensors"
        assert exit_code("export", trained(line), "--format", "torchvision", "--out", out) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(part in error for part in (headstart.load(trained(line)).backbone.title, "torchvision", "timm"))
        assert list(tmp_path.iterdir()) == []

    def test_is_exported_to_int8_or_refused_for_its_probabilities(self, line, trained, tmp_path, capsys) -> None:
        out = tmp_path / "model.onnx"
        code = exit_code("export", trained(line), "--format", "int8", "--out", out)
        error = capsys.readouterr().err
        assert code == 0 or (
            code == 1 and re.fullmatch(r"headstart: int8 is not written: .*52 drawn images.*\n", error)
        )
        assert out.exists() == (code == 0)

    def test_is_pushed(self, line, trained, capsys) -> None:
        assert exit_code("push", trained(line), "me/matrix", "--dry-run") == 0
        printed = capsys.readouterr().out
        for name in ("README.md", "config.json", "model.safetensors"):
            assert re.search(rf"{re.escape(name)} .*sha256", printed)

    def test_is_served_with_grad_cam(self, line, images, trained) -> None:
        predictor = headstart.load(trained(line))
        image = next((images / "val").rglob("*.png"))
        with running(predictor) as server:
            reply = server.predict(image.read_bytes(), "?gradcam=true")
        assert reply.status == 200
        (found,) = reply.json["results"]
        assert found["label"] == predictor.predict(image)[0].label
        assert np.shape(found["gradcam"]) == (line.map_side, line.map_side)

    @pytest.mark.distributed
    def test_passes_the_parity_check(self, line, config_of, tmp_path, capsys) -> None:
        (tmp_path / "config.yaml").write_text(to_yaml(config_of(line, "fine_tune")))
        command = ("doctor", "parity", "--config", tmp_path / "config.yaml", "--steps", 8)
        assert exit_code(*command, "--processes", 1, 2, "--workers", 0) == 0, capsys.readouterr().out
