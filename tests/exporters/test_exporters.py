"""An exported model answers as predict does, in its own runtime; one that does not is not written."""

import io
import json
import math
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support import REPOSITORY
from support.runs import small
from torchvision.models import resnet18

import headstart
from headstart import InputError, cli
from headstart.artifacts import load_model, read_info, save_model_tensors
from headstart.calibration import Calibration, fit_conformal
from headstart.data.decode import decode
from headstart.export import as_timm
from headstart.export.command import FORMATS, check_runtime, export, find_format, parity_file
from headstart.export.drawn import NUM_DRAWN, drawn_files
from headstart.export.gate import Refused, check
from headstart.export.images import RunImages
from headstart.export.original import Original, read_original
from headstart.preprocess import Preprocess
from headstart.training import run

EXACT = [name for name, format in FORMATS.items() if format.largest_loss is None]


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> Path:
    """A run that measured itself in bf16."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return run(small(tiny_data, out, strategy="frozen_head", runtime={"mixed_precision": "bf16"}))


@pytest.fixture(scope="module")
def original(finished) -> Original:
    return read_original(finished / "model.safetensors", RunImages.of(finished))


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory) -> Callable[[str], Path]:
    """exported(format): where it lies; exported on first use."""
    folder = tmp_path_factory.mktemp("exported")

    def get(name: str) -> Path:
        out = folder / f"{name}{FORMATS[name].suffix}"
        if not out.exists():
            export(original, FORMATS[name], out)
        return out

    return get


def exit_code(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(part) for part in argv])
    return end.value.code


def test_the_drawn_images_are_of_many_sizes_and_modes() -> None:
    files = drawn_files()
    assert len(files) == len({name for name, _ in files}) == NUM_DRAWN >= 50
    sizes, modes, kinds = set(), set(), set()
    for name, content in files:
        sizes.add(decode(content).size)
        with Image.open(io.BytesIO(content)) as image:
            modes.add(image.mode)
            kinds.add(image.format)
            if name.startswith("exif"):
                assert image.getexif()[0x0112] == int(name[5])
    assert {(1, 1), (1, 90), (90, 1), (700, 9)} <= sizes
    assert {"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "LAB"} <= modes
    assert {"JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"} <= kinds


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_passes_the_gate_in_its_own_runtime(name, exported) -> None:
    out = exported(name)
    record = json.loads(parity_file(out, FORMATS[name]).read_text())
    parity = record["parity"]
    assert record["format"] == name
    assert record["measured_in"] == "bf16"
    assert parity["drawn"]["n"] == NUM_DRAWN
    assert parity["drawn"]["largest" if name in EXACT else "mean"] <= parity["tolerance"]
    assert parity["validation"]["n"] == 15
    assert parity["correct"] == parity["correct_before"] or name not in EXACT
    assert set(parity["visible"]) == {"interpolation", "crop by one pixel", "channel order", "class order"}
    assert all(difference > parity["tolerance"] for difference in parity["visible"].values())
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


FAULTS: dict[str, Callable[[Original], Original]] = {
    "interpolation": lambda o: with_preprocess(o, interpolation="bicubic", antialias=False),
    "crop": lambda o: with_preprocess(o, resize_size=o.info.preprocess.resize_size + 1),
    "channel order": lambda o: replace(o, network=blue_first(o)),
    "class order": lambda o: replace(o, info=replace(o.info, classes=tuple(reversed(o.info.classes)))),
}


def with_preprocess(original: Original, **changes: object) -> Original:
    return replace(original, info=replace(original.info, preprocess=replace(original.info.preprocess, **changes)))


def blue_first(original: Original) -> torch.nn.Module:
    """A network that would be right if it were given BGR."""
    network, _ = load_model(original.path)
    with torch.no_grad():
        network.conv1.weight.copy_(original.network.conv1.weight.flip(1))
    return network.requires_grad_(False)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["torchvision", "timm", "transformers", "onnx-uint8"])
def test_a_fault_in_preprocessing_closes_the_gate(name, fault, original, tmp_path) -> None:
    out = tmp_path / f"model{FORMATS[name].suffix}"
    honest = FORMATS[name]
    faulty = replace(honest, write=lambda original, path: honest.write(FAULTS[fault](original), path))
    with pytest.raises((Refused, InputError), match=r"probabilities differ|preprocessing that this version lacks"):
        export(original, faulty, out)
    assert list(tmp_path.iterdir()) == []


def test_without_a_fault_the_same_way_opens_the_gate(original, tmp_path) -> None:
    honest = FORMATS["timm"]
    export(original, replace(honest, write=lambda original, path: honest.write(original, path)), tmp_path / "model")
    assert (tmp_path / "model" / "parity.json").is_file()


def test_answers_that_are_no_numbers_or_of_other_classes_close_the_gate(original) -> None:
    classes = original.info.classes
    with pytest.raises(Refused, match="differ"):
        check(original, lambda image: dict.fromkeys(classes, float("nan")), tolerance=1e-4)
    with pytest.raises(Refused, match="its classes are one, two, three and not blue_waves"):
        check(original, lambda image: {"one": 1.0, "two": 0.0, "three": 0.0}, tolerance=1e-4)


def test_wrong_on_photographs_alone_closes_the_gate_too(original) -> None:
    """Right on every drawn image, wrong on the run's own."""
    answer = FORMATS["torchvision"]
    predictor = headstart.load(original.path, device="cpu", precision="fp32")
    drawn = {decode(content).tobytes() for _, content in drawn_files()}

    def lying(image: Image.Image) -> dict[str, float]:
        right = predictor.predict(image)[0].probabilities
        return right if image.tobytes() in drawn else {name: 1 - value for name, value in right.items()}

    with pytest.raises(Refused, match="at val/"):
        check(original, lying, tolerance=answer.tolerance)


def test_a_loss_of_accuracy_beyond_the_bound_closes_the_gate_for_int8(original) -> None:
    predictor = headstart.load(original.path, device="cpu", precision="fp32")
    drawn = {decode(content).tobytes() for _, content in drawn_files()}

    def rolled(image: Image.Image) -> dict[str, float]:
        right = predictor.predict(image)[0].probabilities
        values = list(right.values())
        return right if image.tobytes() in drawn else dict(zip(right, values[1:] + values[:1], strict=True))

    with pytest.raises(Refused, match=r"validation images right where predict gets .*a loss of"):
        check(original, rolled, tolerance=0.02, largest_loss=0.02)
    assert check(original, rolled, tolerance=0.02, largest_loss=1.0).loss > 0.1


def test_the_probabilities_are_the_calibrated_ones(finished, tmp_path) -> None:
    tensors = load_file(finished / "model.safetensors")
    info = read_info(finished / "model.safetensors")
    logits, labels = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    calibration = Calibration(2.5, "validation logits", 60, fit_conformal(logits, labels, exact=False), None)
    path = tmp_path / "model.safetensors"
    save_model_tensors(path, tensors, replace(info, calibration=calibration))
    calibrated = read_original(path, RunImages.of(path))
    out = tmp_path / "plain.safetensors"
    parity = export(calibrated, FORMATS["torchvision"], out)
    assert parity.drawn.largest <= 1e-4
    assert torch.allclose(load_file(out)["fc.weight"] * 2.5, tensors["fc.weight"])
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["temperature"]) == 2.5
    with pytest.raises(Refused):  # the gate knows the difference
        check(calibrated, FORMATS["torchvision"].open(export_plain(finished, tmp_path)), tolerance=1e-4)


def export_plain(finished: Path, folder: Path) -> Path:
    out = folder / "uncalibrated.safetensors"
    FORMATS["torchvision"].write(read_original(finished / "model.safetensors", RunImages(missing="")), out)
    return out


def test_the_state_dict_is_torchvisions_and_nothing_else(exported, original) -> None:
    tensors = load_file(exported("torchvision"))
    assert tensors.keys() == resnet18(num_classes=3).state_dict().keys()


def test_the_graph_of_the_image_takes_any_size_and_names_its_classes(exported, original, draw_image) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported("onnx-uint8"), providers=["CPUExecutionProvider"])
    (image,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["height", "width", 3])
    assert (answer.name, answer.type, answer.shape) == ("probabilities", "tensor(float)", [3])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(original.info.classes)
    assert Preprocess.from_json(json.loads(metadata["preprocess"])) == original.info.preprocess
    found = session.run(None, {"image": np.array(draw_image(1, 1))})[0]
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_the_networks_take_any_batch(exported) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported("onnx"), providers=["CPUExecutionProvider"])
    program = torch.export.load(exported("pt2")).module()
    for count in (1, 5):
        pixels = torch.randn(count, 3, 32, 32)
        logits = session.run(None, {"pixels": pixels.numpy()})[0]
        assert logits.shape == (count, 3)
        assert np.allclose(logits, program(pixels).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_no_file_holds_code_or_tells_of_this_machine(name, exported) -> None:
    out = exported(name)
    files = [path for path in (out, *out.rglob("*")) if path.is_file()]
    assert files
    here = str(Path(headstart.__file__).parent).encode()
    for path in files:
        contents = {path.name: path.read_bytes()}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents |= {member: archive.read(member) for member in archive.namelist()}
        for member, content in contents.items():
            assert content[:1] != b"\x80", f"{member} of {path} starts like a pickle"
            assert member == path.name or content[:4] != b"PK\x03\x04", (
                f"{member} of {path} is a zip, as torch.save writes"
            )
            for told in (here, b"site-packages", b"stack_trace", b"/torch/nn/"):
                assert told not in content, f"{member} of {path} tells {told!r}"


@pytest.mark.parametrize(
    ("side", "resize"), [(224, 256), (32, 37), (96, 110), (64, 64), (299, 320), (160, 183), (225, 257)]
)
def test_timm_is_told_the_share_that_gives_the_short_side(side, resize) -> None:
    assert math.floor(side / as_timm.crop_pct(Preprocess(side, resize))) == resize


def test_timm_is_told_the_right_share_for_every_size() -> None:
    for side in range(32, 600, 7):
        for resize in range(side, side * 2, 11):
            assert math.floor(side / as_timm.crop_pct(Preprocess(side, resize))) == resize


class TestTheCommand:
    def test_it_says_what_was_compared(self, finished, tmp_path, capsys) -> None:
        out = tmp_path / "model.safetensors"
        assert exit_code("export", finished, "--format", "torchvision", "--out", out) == 0
        said = capsys.readouterr().out
        assert re.search(r"52 drawn images of odd sizes and modes: probabilities differ by \S+ at most", said)
        assert "15 validation images" in said
        assert "measured itself in bf16" in said
        assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model.safetensors.parity.json"}

    def test_where_the_gate_closes_it_ends_with_one_sentence_and_no_file(
        self, finished, tmp_path, capsys, monkeypatch
    ) -> None:
        monkeypatch.setitem(FORMATS, "torchvision", replace(FORMATS["torchvision"], tolerance=0.0))
        assert exit_code("export", finished, "--format", "torchvision", "--out", tmp_path / "m.safetensors") == 1
        said = capsys.readouterr().err
        assert said.startswith("headstart: torchvision is not written: its probabilities differ from predict's by ")
        assert said.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_what_exists_is_replaced_only_when_asked_and_only_if_it_is_an_export(
        self, finished, tmp_path, capsys
    ) -> None:
        out = tmp_path / "model"
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
        command = ("export", finished, "--format", "timm", "--out", out)
        assert exit_code(*command) == 2
        assert "exists; name another place, or replace it with --overwrite" in capsys.readouterr().err
        assert exit_code(*command, "--overwrite") == 2
        assert "was not written by headstart export" in capsys.readouterr().err
        assert (out / "thesis.txt").read_text() == "mine"
        (out / "thesis.txt").rename(out / "parity.json")
        assert exit_code(*command, "--overwrite") == 0
        assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "parity.json"}
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_the_record_of_something_else_is_not_replaced(self, finished, tmp_path, capsys) -> None:
        record = tmp_path / "m.safetensors.parity.json"
        record.write_text("mine")
        command = ("export", finished, "--format", "torchvision", "--out", tmp_path / "m.safetensors")
        assert exit_code(*command) == 2
        assert "m.safetensors.parity.json exists; name another place" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == [record.name]
        assert record.read_text() == "mine"
        record.unlink()
        record.mkdir()
        assert exit_code(*command, "--overwrite") == 2
        assert "is a folder and was not written by headstart export" in capsys.readouterr().err

    @pytest.mark.parametrize("damage", ["data: [", "data: 3", "- a", "data: {rot: x}"])
    def test_a_damaged_configuration_is_said_and_with_data_refused(self, damage, finished, tmp_path) -> None:
        for name in ("model.safetensors", "manifest.parquet"):
            (tmp_path / name).write_bytes((finished / name).read_bytes())
        (tmp_path / "config.yaml").write_text(damage)
        assert "has no readable manifest.parquet and config.yaml" in (RunImages.of(tmp_path).missing or "")
        with pytest.raises(InputError, match=r"has no readable manifest\.parquet and config\.yaml"):
            RunImages.of(tmp_path, data=str(tmp_path))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--format", "onx", "--out", "m.onnx"), "unknown format onx; did you mean onnx?"),
            (("--format", "onnx", "--out", "m.pt"), "onnx is a file that ends in .onnx"),
            (("--format", "timm", "--out", "m.onnx"), "timm is a folder; name one without .onnx"),
            (("--format", "onnx", "--out", "nowhere/m.onnx"), "nowhere is not a folder; make it first"),
            (("--format", "onnx", "--out", "m.onnx", "--allow_loss", "0.1"), "--allow_loss is for int8"),
            (("--format", "onnx", "--out", "m.onnx", "--allow_loss", "2"), "it must lie between 0 and 1"),
            (("--format", "onnx", "--out", "m.onnx", "--images", "0"), "--images is 0; it must be at least 1"),
            (("--format", "torchvision", "--out", "m.safetensors", "--data", "gone"), "gone"),
        ],
    )  # fmt: skip
    def test_a_mistake_is_named_in_one_sentence(self, arguments, said, finished, tmp_path, monkeypatch, capsys) -> None:
        monkeypatch.chdir(tmp_path)
        assert exit_code("export", finished, *arguments) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_int8_needs_the_training_images(self, finished, tmp_path, capsys) -> None:
        (tmp_path / "model.safetensors").write_bytes((finished / "model.safetensors").read_bytes())
        assert exit_code("export", tmp_path, "--format", "int8", "--out", tmp_path / "m.onnx") == 2
        assert "int8 is calibrated on training images of the run" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_a_model_file_alone_is_compared_on_drawn_images_and_says_so(self, finished, tmp_path, capsys) -> None:
        model = tmp_path / "model.safetensors"
        model.write_bytes((finished / "model.safetensors").read_bytes())
        assert exit_code("export", model, "--format", "torchvision", "--out", tmp_path / "m.safetensors") == 0
        assert "validation images not compared: " in capsys.readouterr().out

    def test_images_that_moved_are_found_with_data(self, finished, tiny_data, tmp_path, capsys) -> None:
        copy = tmp_path / "run"
        copy.mkdir()
        for name in ("model.safetensors", "manifest.parquet"):
            (copy / name).write_bytes((finished / name).read_bytes())
        text = (finished / "config.yaml").read_text()
        (copy / "config.yaml").write_text(text.replace(str(tiny_data), str(tmp_path / "gone")))
        command = ("export", copy, "--format", "torchvision", "--out")
        assert exit_code(*command, tmp_path / "a.safetensors") == 0
        assert "validation images not compared: " in capsys.readouterr().out
        assert exit_code(*command, tmp_path / "b.safetensors", "--data", tiny_data) == 0
        assert "15 validation images" in capsys.readouterr().out


def test_a_missing_runtime_is_named_with_the_command_that_installs_it() -> None:
    absent = replace(find_format("timm"), modules=("no_such_runtime",))
    with pytest.raises(InputError, match=r"needs no_such_runtime.*pip install 'headstart\[timm\]'"):
        check_runtime(absent)


PAGE = REPOSITORY / "docs" / "export.md"
BLOCKS = re.findall(r"^```(python|js)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
ON_THE_PAGE = {
    "plain.safetensors": "torchvision",
    "for_transformers": "transformers",
    "for_timm": "timm",
    "model.onnx": "onnx-uint8",
    "program.pt2": "pt2",
    "for_openvino": "openvino",
}


class TestThePageOfDocumentation:
    """What it tells others to write works as it stands."""

    @pytest.fixture
    def expected(self, original, tiny_data, tmp_path, monkeypatch) -> dict[str, float]:
        """What predict answers for photo.jpg, which lies in the current folder."""
        photo = sorted((tiny_data / "val").rglob("*.jpg"))[0]
        (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
        monkeypatch.chdir(tmp_path)
        found = headstart.load(original.path, device="cpu", precision="fp32").predict(photo)[0].probabilities
        assert found is not None
        return found

    @staticmethod
    def lay_out(block: str, exported: Callable[[str], Path]) -> None:
        """What the block opens, in the current folder."""
        (name,) = (name for name in ON_THE_PAGE if name in block)
        made = exported(ON_THE_PAGE[name])
        Path(name).symlink_to(made)
        if made.is_file():
            Path(f"{name}.parity.json").symlink_to(made.with_name(f"{made.name}.parity.json"))

    def test_it_has_a_block_for_every_way(self) -> None:
        assert len(BLOCKS) == 7
        assert {name for _, block in BLOCKS for name in ON_THE_PAGE if name in block} == set(ON_THE_PAGE)

    @pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # short examples leave a file to the garbage collector
    def test_its_python_answers_as_predict_does(self, block, exported, expected) -> None:
        self.lay_out(block, exported)
        names: dict[str, dict[str, float]] = {}
        exec(block, names)
        assert names["answer"].keys() == expected.keys()
        assert [names["answer"][name] for name in expected] == pytest.approx(list(expected.values()), abs=1e-4)

    def test_its_javascript_answers_as_predict_does(self, exported, expected) -> None:
        modules = os.environ.get("HEADSTART_TEST_NODE")
        if modules is None:
            pytest.skip("NOT TESTED IN JAVASCRIPT: set HEADSTART_TEST_NODE to a folder with onnxruntime-node and sharp")
        (block,) = (block for kind, block in BLOCKS if kind == "js")
        self.lay_out(block, exported)
        Path("page.mjs").write_text(block)
        Path("node_modules").symlink_to(Path(modules).absolute() / "node_modules")
        done = subprocess.run(["node", "page.mjs"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert [found[name] for name in expected] == pytest.approx(list(expected.values()), abs=1e-4)
