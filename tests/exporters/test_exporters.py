"""An exported model gives the probabilities of `predict` in its own runtime, or it is not written."""

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
from torchvision.models import resnet18

import headstart
from headstart import InputError
from headstart.cli.main import main
from headstart.data.decode import decode
from headstart.data.transforms import Preprocess
from headstart.exporters import as_onnx_image, as_timm
from headstart.exporters.command import export
from headstart.exporters.drawn_images import NUM_DRAWN, drawn_files
from headstart.exporters.formats import FORMATS, check_runtime, find_format, parity_file
from headstart.exporters.gate import check
from headstart.exporters.original import Original, read_original
from headstart.exporters.run_images import RunImages
from headstart.model.calibration import Calibration
from headstart.model.conformal import fit_conformal
from headstart.model.model_file import load_model, read_info, save_model_tensors
from headstart.results import ExportRefused, Parity

EXACT = [name for name, format in FORMATS.items() if format.largest_loss is None]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def original(bf16_run) -> Original:
    return read_original(bf16_run / "model.safetensors", RunImages.of(bf16_run))


@pytest.fixture(scope="module")
def few_drawn() -> tuple[tuple[str, bytes], ...]:
    """Every seventh of the drawn files: a difference that these show is shown by all."""
    return drawn_files()[::7]


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory) -> Callable[[str], Path]:
    """exported(format): its path; exported on first use."""
    folder = tmp_path_factory.mktemp("exported")

    def get(name: str) -> Path:
        out = folder / f"{name}{FORMATS[name].suffix}"
        if not out.exists():
            export(original, FORMATS[name], out)
        return out

    return get


def exit_code(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
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
    """The network for images in BGR order."""
    network, _ = load_model(original.path)
    with torch.no_grad():
        network.conv1.weight.copy_(original.network.conv1.weight.flip(1))
    return network.requires_grad_(False)


ONE_PER_FORMAT = {("timm", "crop"), ("transformers", "interpolation"), ("onnx-uint8", "class order")}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(
            name,
            fault,
            marks=[] if name == "torchvision" or (name, fault) in ONE_PER_FORMAT else pytest.mark.extended,
        )
        for name in ("torchvision", "timm", "transformers", "onnx-uint8")
        for fault in FAULTS
    ],
)
def test_the_gate_refuses_a_fault_in_preprocessing(name, fault, original, few_drawn, tmp_path) -> None:
    format, out = FORMATS[name], tmp_path / f"model{FORMATS[name].suffix}"

    def write_and_check() -> Parity:
        format.write(FAULTS[fault](original), out)
        return check(original, format.open(out), tolerance=format.tolerance, drawn=few_drawn)

    differs = rf"{len(few_drawn)} drawn .*{format.tolerance:g}"
    with pytest.raises(
        (ExportRefused, InputError), match=f"{differs}|bicubic"
    ):  # bicubic may be refused without images
        write_and_check()


def test_a_refused_export_leaves_no_file_and_the_same_export_without_the_fault_is_accepted(original, tmp_path) -> None:
    honest = FORMATS["torchvision"]
    faulty = replace(honest, write=lambda original, path: honest.write(FAULTS["class order"](original), path))
    out = tmp_path / "model.safetensors"
    with pytest.raises(ExportRefused, match=rf"{NUM_DRAWN} drawn .*{honest.tolerance:g}"):
        export(original, faulty, out)
    assert list(tmp_path.iterdir()) == []
    export(original, replace(honest, write=lambda original, path: honest.write(original, path)), out)
    assert parity_file(out, honest).is_file()


def test_the_gate_refuses_nan_and_other_classes(original, few_drawn) -> None:
    classes = original.info.classes
    with pytest.raises(ExportRefused, match="nan"):
        check(original, lambda image: dict.fromkeys(classes, float("nan")), tolerance=1e-4, drawn=few_drawn)
    with pytest.raises(ExportRefused, match=rf"one, two, three.*{', '.join(classes)}"):
        check(original, lambda image: {"one": 1.0, "two": 0.0, "three": 0.0}, tolerance=1e-4, drawn=few_drawn)


@pytest.fixture(scope="module")
def differs_on_photographs(original, few_drawn) -> Callable[..., Parity]:
    """differs_on_photographs(change, ...): check() of a model that is exact on the drawn images; on all others its
    list of probabilities is changed."""
    predictor = headstart.load(original.path, device="cpu", precision="fp32")
    drawn = {decode(content).tobytes() for _, content in few_drawn}

    def checked(change: Callable[[list[float]], list[float]], **options: float) -> Parity:
        def answer(image: Image.Image) -> dict[str, float]:
            exact = predictor.predict(image)[0].probabilities
            return exact if image.tobytes() in drawn else dict(zip(exact, change(list(exact.values())), strict=True))

        return check(original, answer, drawn=few_drawn, **options)

    return checked


def test_the_gate_refuses_a_model_that_differs_on_photographs_alone(differs_on_photographs) -> None:
    with pytest.raises(ExportRefused, match=r" val/.*0\.0001"):
        differs_on_photographs(lambda values: [1 - value for value in values], tolerance=1e-4)
    assert differs_on_photographs(lambda values: values, tolerance=1e-4).validation.n == 15


def test_the_gate_refuses_an_int8_model_that_loses_more_accuracy_than_allowed(differs_on_photographs) -> None:
    def rolled(values: list[float]) -> list[float]:
        return values[1:] + values[:1]

    with pytest.raises(ExportRefused, match=r"\b15 validation .*\b2$"):
        differs_on_photographs(rolled, tolerance=0.02, largest_loss=0.02)
    assert differs_on_photographs(rolled, tolerance=0.02, largest_loss=1.0).loss > 0.1


def test_the_gate_refuses_an_int8_model_that_gives_nan_for_photographs(differs_on_photographs) -> None:
    with pytest.raises(ExportRefused, match=r"\bnan at val/"):
        differs_on_photographs(lambda values: [float("nan")] * len(values), tolerance=0.02, largest_loss=1.0)


def test_the_exported_probabilities_are_calibrated(original, few_drawn, tmp_path) -> None:
    tensors = load_file(original.path)
    info = read_info(original.path)
    logits, labels = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    calibration = Calibration(2.5, "validation logits", 60, fit_conformal(logits, labels, exact=False), None)
    path = tmp_path / "model.safetensors"
    save_model_tensors(path, tensors, replace(info, calibration=calibration))
    calibrated = read_original(path, RunImages.of(path))
    out = tmp_path / "plain.safetensors"
    found = export(calibrated, FORMATS["torchvision"], out)
    assert found.temperature == 2.5
    assert found.parity.drawn.largest <= 1e-4
    assert torch.allclose(load_file(out)["fc.weight"] * 2.5, tensors["fc.weight"])
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["temperature"]) == 2.5
    FORMATS["torchvision"].write(read_original(original.path, RunImages(missing="")), tmp_path / "bare")
    with pytest.raises(ExportRefused):  # the uncalibrated model differs
        check(calibrated, FORMATS["torchvision"].open(tmp_path / "bare"), tolerance=1e-4, drawn=few_drawn)


def test_the_state_dict_has_the_keys_of_torchvision(exported) -> None:
    tensors = load_file(exported("torchvision"))
    assert tensors.keys() == resnet18(num_classes=3).state_dict().keys()


def test_the_graph_of_onnx_uint8_takes_any_image_size_and_names_its_classes(exported, original, draw_image) -> None:
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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_preprocessing_of_onnx_uint8_equals_that_of_pillow(interpolation, draw_image) -> None:
    import onnxruntime

    spec = Preprocess(64, 73, interpolation=interpolation, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.125))
    session = onnxruntime.InferenceSession(as_onnx_image._preprocessing(spec).SerializeToString())
    for number, size in enumerate(((64, 48), (331, 217), (75, 640), (900, 40), (1, 1), (73, 73))):
        image = draw_image(number, number).resize(size)
        (found,) = session.run(None, {"image": np.array(image)})
        levels = torch.from_numpy(found) * torch.tensor(spec.std).view(3, 1, 1) + 0.5
        assert torch.equal((levels * 255).round()[0].to(torch.uint8), spec.resize_and_crop(image)), size


def test_onnx_and_pt2_take_any_batch_size(exported) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported("onnx"), providers=["CPUExecutionProvider"])
    program = torch.export.load(exported("pt2")).module()
    for count in (1, 5):
        pixels = torch.randn(count, 3, 32, 32)
        logits = session.run(None, {"pixels": pixels.numpy()})[0]
        assert logits.shape == (count, 3)
        assert np.allclose(logits, program(pixels).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_an_exported_file_holds_no_code_and_no_path_of_this_machine(name, exported) -> None:
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
            for trace in (here, b"site-packages", b"stack_trace", b"/torch/nn/"):
                assert trace not in content, f"{member} of {path} contains {trace!r}"


def test_the_crop_share_for_timm_gives_the_same_resize_for_every_size() -> None:
    named = [(224, 256), (32, 37), (96, 110), (64, 64), (299, 320), (160, 183), (225, 257)]
    for side, resize in [*named, *((s, r) for s in range(32, 600, 7) for r in range(s, s * 2, 11))]:
        assert math.floor(side / as_timm.crop_pct(Preprocess(side, resize))) == resize


@pytest.fixture
def moved_run(bf16_run, tiny_data, tmp_path) -> Path:
    """A copy of the run whose images are no longer where config.yaml has them."""
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("model.safetensors", "manifest.parquet"):
        (copy / name).write_bytes((bf16_run / name).read_bytes())
    text = (bf16_run / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(tiny_data), str(tmp_path / "gone")))
    return copy


def test_images_that_moved_are_not_compared_unless_data_names_them(moved_run, tiny_data, original, few_drawn) -> None:
    def checked(images: RunImages) -> Parity:
        moved = read_original(moved_run / "model.safetensors", images)
        answer = headstart.load(original.path, device="cpu", precision="fp32")
        return check(moved, lambda image: answer.predict(image)[0].probabilities, tolerance=1e-4, drawn=few_drawn)

    without = checked(RunImages.of(moved_run))
    assert without.validation is None
    assert re.search(r"gone|15", without.not_validated)
    assert checked(RunImages.of(moved_run, data=str(tiny_data))).validation.n == 15


class TestTheCommand:
    def test_it_reports_what_was_compared(self, moved_run, tiny_data, tmp_path, capsys) -> None:
        folder = tmp_path / "exported"
        folder.mkdir()
        out = folder / "model.safetensors"
        command = ("export", moved_run, "--format", "torchvision", "--out", out, "--data", tiny_data)
        assert exit_code(*command) == 0
        printed = capsys.readouterr().out
        assert re.search(r"\b52 drawn .*\b\d\.\de-\d\d", printed)
        assert "15 validation images" in printed
        assert "bf16" in printed
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.safetensors.parity.json"}

    def test_a_refused_export_ends_with_exit_code_1_one_line_and_no_file(
        self, bf16_run, tmp_path, capsys, monkeypatch
    ) -> None:
        monkeypatch.setitem(FORMATS, "torchvision", replace(FORMATS["torchvision"], tolerance=0.0))
        assert exit_code("export", bf16_run, "--format", "torchvision", "--out", tmp_path / "m.safetensors") == 1
        error = capsys.readouterr().err
        assert re.match(r"headstart: .*torchvision.*\b52 drawn", error)
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_only_an_earlier_export_is_replaced_and_only_with_overwrite(self, bf16_run, tmp_path, capsys) -> None:
        out = tmp_path / "model"
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
        command = ("export", bf16_run, "--format", "timm", "--out", out)
        assert exit_code(*command) == 2
        assert re.search(rf"{out} .*--overwrite", capsys.readouterr().err)
        assert exit_code(*command, "--overwrite") == 2
        assert re.search(rf"{out} .*headstart export", capsys.readouterr().err)
        assert (out / "thesis.txt").read_text() == "mine"
        (out / "thesis.txt").rename(out / "parity.json")
        assert exit_code(*command, "--overwrite") == 0
        assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "parity.json"}
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_a_parity_file_of_something_else_is_not_replaced(self, bf16_run, tmp_path, capsys) -> None:
        record = tmp_path / "m.safetensors.parity.json"
        record.write_text("mine")
        command = ("export", bf16_run, "--format", "torchvision", "--out", tmp_path / "m.safetensors")
        assert exit_code(*command) == 2
        assert re.search(rf"{record} .*--overwrite", capsys.readouterr().err)
        assert [path.name for path in tmp_path.iterdir()] == [record.name]
        assert record.read_text() == "mine"
        record.unlink()
        record.mkdir()
        assert exit_code(*command, "--overwrite") == 2
        assert re.search(rf"{record} .*folder", capsys.readouterr().err)

    @pytest.mark.parametrize("damage", ["data: [", "data: 3", "- a", "data: {rot: x}"])
    def test_a_damaged_configuration_is_reported_and_with_data_refused(self, damage, bf16_run, tmp_path) -> None:
        for name in ("model.safetensors", "manifest.parquet"):
            (tmp_path / name).write_bytes((bf16_run / name).read_bytes())
        (tmp_path / "config.yaml").write_text(damage)
        named = re.compile(rf"{tmp_path} .*manifest\.parquet and config\.yaml")
        assert named.search(RunImages.of(tmp_path).missing or "")
        with pytest.raises(InputError, match=named):
            RunImages.of(tmp_path, data=str(tmp_path))

    @pytest.mark.parametrize(
        ("arguments", "fragments"),
        [
            (("--format", "onx", "--out", "m.onnx"), ["onx", "onnx?"]),
            (("--format", "onnx", "--out", "m.pt"), ["--out m.pt", ".onnx"]),
            (("--format", "timm", "--out", "m.onnx"), ["--out m.onnx", "timm", "folder"]),
            (("--format", "onnx", "--out", "nowhere/m.onnx"), ["--out nowhere/m.onnx", "nowhere is not a folder"]),
            (("--format", "onnx", "--out", "m.onnx", "--allow_loss", "0.1"), ["--allow_loss", "int8"]),
            (("--format", "int8", "--out", "m.onnx", "--allow_loss", "2"), ["--allow_loss", "0 and 1"]),
            (("--format", "onnx", "--out", "m.onnx", "--images", "0"), ["--images", "at least 1"]),
            (("--format", "torchvision", "--out", "m.safetensors", "--data", "gone"), ["gone"]),
        ],
    )
    def test_a_mistake_is_refused_in_one_line(
        self, arguments, fragments, bf16_run, tmp_path, monkeypatch, capsys
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert exit_code("export", bf16_run, *arguments) == 2
        error = capsys.readouterr().err
        for fragment in fragments:
            assert fragment in error
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_int8_needs_the_training_images(self, bf16_run, tmp_path, capsys) -> None:
        (tmp_path / "model.safetensors").write_bytes((bf16_run / "model.safetensors").read_bytes())
        assert exit_code("export", tmp_path, "--format", "int8", "--out", tmp_path / "m.onnx") == 2
        assert re.search(r"int8 .*training images.*--data", capsys.readouterr().err)
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_a_model_file_alone_is_compared_on_drawn_images_only(self, bf16_run, tmp_path, capsys) -> None:
        model = tmp_path / "model.safetensors"
        model.write_bytes((bf16_run / "model.safetensors").read_bytes())
        out = tmp_path / "m.safetensors"
        assert exit_code("export", model, "--format", "torchvision", "--out", out) == 0
        parity = json.loads(parity_file(out, FORMATS["torchvision"]).read_text())["parity"]
        assert parity["validation"] is None
        assert "manifest.parquet" in parity["not_validated"]
        assert parity["not_validated"] in capsys.readouterr().out


def test_a_missing_runtime_is_named_with_the_command_that_installs_it() -> None:
    absent = replace(find_format("timm"), modules=("no_such_runtime",))
    with pytest.raises(InputError, match=r"no_such_runtime.*pip install 'headstart\[timm\]'"):
        check_runtime(absent)


PAGE = REPOSITORY / "docs" / "how-to" / "export.md"
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
    """Its code blocks work as they stand."""

    @pytest.fixture
    def expected(self, original, tiny_data, tmp_path, monkeypatch) -> dict[str, float]:
        """The probabilities of predict for photo.jpg, a file in the current folder."""
        photo = sorted((tiny_data / "val").rglob("*.jpg"))[0]
        (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
        monkeypatch.chdir(tmp_path)
        found = headstart.load(original.path, device="cpu", precision="fp32").predict(photo)[0].probabilities
        assert found is not None
        return found

    @staticmethod
    def lay_out(block: str, exported: Callable[[str], Path]) -> None:
        """Link what the block opens into the current folder."""
        (name,) = (name for name in ON_THE_PAGE if name in block)
        made = exported(ON_THE_PAGE[name])
        Path(name).symlink_to(made)
        if made.is_file():
            Path(f"{name}.parity.json").symlink_to(made.with_name(f"{made.name}.parity.json"))

    def test_it_has_a_block_for_every_format_that_it_names(self) -> None:
        assert len(BLOCKS) == 7
        assert {name for _, block in BLOCKS for name in ON_THE_PAGE if name in block} == set(ON_THE_PAGE)

    @pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # short examples leave a file to the garbage collector
    def test_its_python_gives_the_probabilities_of_predict(self, block, exported, expected) -> None:
        self.lay_out(block, exported)
        names: dict[str, dict[str, float]] = {}
        exec(block, names)
        assert names["answer"].keys() == expected.keys()
        assert [names["answer"][name] for name in expected] == pytest.approx(list(expected.values()), abs=1e-4)

    def test_its_javascript_gives_the_probabilities_of_predict(self, exported, expected) -> None:
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
