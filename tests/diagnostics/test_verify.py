"""Golden inputs: the same everywhere; a fault anywhere between the file and the logits is seen. What inspect says."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, safe_open
from support.models import CLASSES, tensors_of, write_model
from torchvision.models import resnet18

from headstart import InputError, cli, golden
from headstart.artifacts import load_tensors, read_info, save_model_tensors, save_tensors
from headstart.preprocess import Preprocess
from headstart.runtime import versions
from headstart.verify import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), precision="bf16")


def exit_code(*argv: object) -> object:
    with pytest.raises(SystemExit) as end:
        cli.main([str(part) for part in argv])
    return end.value.code


def test_the_same_file_passes_here_in_fp32_and_as_it_was_measured(folder, capsys) -> None:
    assert exit_code("verify", folder) == 0
    said = capsys.readouterr().out
    assert "fp32: pass, largest difference of a logit" in said
    assert "bf16: pass" in said
    assert "on cpu" in said
    assert f"torch {versions()['torch']}" in said
    assert f"torch {versions()['torch']}" in said
    found = verify(folder)
    assert [list(found["checks"]), found["passed"]] == [["fp32", "bf16"], True]
    for checks in found["checks"].values():
        assert [check.drawing.name for check in checks] == [drawing.name for drawing in golden.DRAWINGS]
        assert all(check.view and check.decoded for check in checks)
    assert max(check.difference for check in found["checks"]["fp32"]) < 1e-4
    assert max(check.difference for check in found["checks"]["bf16"]) > 1e-4, "bf16 must not be fp32 in disguise"


@pytest.mark.parametrize("measured_on", ["network", "feature bank"])
def test_golden_logits_are_what_plain_torchvision_computes(measured_on, tmp_path) -> None:
    folder = write_model(tmp_path, measured_on=measured_on)
    info = read_info(folder / "model.safetensors")
    model = resnet18(num_classes=3)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    views = torch.stack([info.preprocess.eval_view(info.preprocess.decode(golden.draw(n))) for n in range(7)])
    with torch.inference_mode():
        expected = model.eval()(info.preprocess.normalize(views)).numpy()
    recorded = np.array([entry["logits"] for entry in info.golden["inputs"]])
    assert np.abs(recorded - expected).max() < 1e-4
    assert np.abs(expected).max() > 1


def test_the_drawings_are_odd_and_go_through_every_conversion() -> None:
    images = [Image.open(path) for path in map(_file, range(len(golden.DRAWINGS)))]
    assert [image.mode for image in images] == ["RGB", "L", "P", "RGBA", "I;16", "RGB", "RGB"]
    assert {image.format for image in images} == {"PNG", "JPEG"}
    assert images[5].getexif()[274] == 6
    assert len({image.size for image in images}) == 7
    assert golden.draw(0) == golden.draw(0)


def _file(number: int):
    import io

    return io.BytesIO(golden.draw(number))


def test_the_formula_is_the_one_that_is_documented() -> None:
    image = np.array(Image.open(_file(0)))
    x, y, c, s = 123, 45, 2, 0
    v = 5 * x + 3 * y + 40 * c + 29 * s + (x * y >> (3 + c)) + 90 * ((x >> 3 ^ y >> 3) & 1) + (7 + c) * (x + y & 3)
    assert image[y, x, c] == v % 256
    gray = np.array(Image.open(_file(4)))
    v = 5 * 7 + 3 * 9 + 29 * 4 + (7 * 9 >> 3) + 90 * ((7 >> 3 ^ 9 >> 3) & 1) + 7 * (7 + 9 & 3)
    assert gray[9, 7] == 256 * (v % 256) + 16


# ------------------------------------------------------------------------------------------------- seeded faults


def bicubic(monkeypatch) -> None:
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *_: original(self, size, Image.Resampling.BICUBIC))


def squeezed(monkeypatch) -> None:
    def view(self: Preprocess, image: Image.Image) -> torch.Tensor:
        square = image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    monkeypatch.setattr(Preprocess, "eval_view", view)


def crop_off_by_one(monkeypatch) -> None:
    original = Image.Image.crop
    moved = lambda self, box: original(self, (box[0] + 1, box[1], box[2] + 1, box[3]))  # noqa: E731
    monkeypatch.setattr(Image.Image, "crop", moved)


def blue_first(monkeypatch) -> None:
    original = Preprocess.eval_view
    monkeypatch.setattr(Preprocess, "eval_view", lambda self, image: original(self, image).flip(0))


def orientation_ignored(monkeypatch) -> None:
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda image, in_place: None)


def alpha_dropped(monkeypatch) -> None:
    monkeypatch.setattr("headstart.data.decode._to_rgb", lambda image: image.convert("RGB"))


def not_normalised(monkeypatch) -> None:
    monkeypatch.setattr(Preprocess, "normalize", lambda self, pixels: pixels.float().div(255))


FAULTS: dict[str, tuple[Callable, str]] = {
    "interpolation": (bicubic, "resize, crop or channels differ"),
    "squeezed instead of cropped": (squeezed, "resize, crop or channels differ"),
    "crop": (crop_off_by_one, "resize, crop or channels differ"),
    "channel order": (blue_first, "resize, crop or channels differ"),
    "orientation": (orientation_ignored, "decoded otherwise"),
    "alpha and 16 bits": (alpha_dropped, "decoded otherwise"),
    "normalisation": (not_normalised, "sees the same pixels and says something else"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_preprocessing_is_seen(fault, folder, monkeypatch, capsys) -> None:
    break_it, reason = FAULTS[fault]
    break_it(monkeypatch)
    assert exit_code("verify", folder) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "FAIL" in said
    assert reason in said


def rewritten(folder: Path, to: Path, *, head: list[int] | None = None, **changes: object) -> Path:
    tensors, info = load_tensors(folder / "model.safetensors")
    if head is not None:
        tensors = tensors | {f"fc.{name}": tensors[f"fc.{name}"][head] for name in ("weight", "bias")}
    save_model_tensors(to / "model.safetensors", tensors, replace(info, **changes))
    return to


def test_classes_in_another_order_are_seen(folder, tmp_path, capsys) -> None:
    swapped = (CLASSES[1], CLASSES[0], CLASSES[2])
    assert exit_code("verify", rewritten(folder, tmp_path, classes=swapped)) == 1
    assert "sees the same pixels and says something else" in " ".join(capsys.readouterr().out.split())


def test_a_head_in_another_order_is_seen_and_with_its_names_it_is_the_same_model(folder, tmp_path) -> None:
    assert not verify(rewritten(folder, tmp_path, head=[1, 0, 2]))["passed"]
    both = rewritten(folder, tmp_path, head=[1, 0, 2], classes=(CLASSES[1], CLASSES[0], CLASSES[2]))
    assert verify(both)["passed"]


def test_other_weights_are_seen(folder, tmp_path) -> None:
    tensors, info = load_tensors(folder / "model.safetensors")
    tensors["layer4.1.bn2.running_var"] = tensors["layer4.1.bn2.running_var"] * 1.1
    save_model_tensors(tmp_path / "model.safetensors", tensors, info)
    assert not verify(tmp_path)["passed"]


def test_a_flipped_bit_of_a_tensor_is_seen_though_no_logit_shows_it(folder, tmp_path, capsys) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1000] ^= 1  # the last bit of a number
    (tmp_path / "model.safetensors").write_bytes(data)
    assert exit_code("verify", tmp_path) == 1
    assert "tensors: FAIL, other than they were written" in capsys.readouterr().out
    assert exit_code("verify", folder) == 0
    assert "tensors: as they were written" in capsys.readouterr().out


def test_a_file_of_before_there_was_a_hash_of_its_tensors_is_verified(folder, tmp_path, capsys) -> None:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        header = {name: text for name, text in file.metadata().items() if name != "headstart.tensors_sha256"}
    save_tensors(tmp_path / "model.safetensors", load_file(folder / "model.safetensors"), header)
    assert exit_code("verify", tmp_path) == 0
    assert "tensors: not recorded in this file" in capsys.readouterr().out


def test_another_jpeg_decoder_is_told_and_forgiven_within_its_tolerance(folder, monkeypatch) -> None:
    original = Preprocess.decode

    def decode(self: Preprocess, data: bytes) -> Image.Image:
        image = original(self, data)
        return image.point(lambda value: value ^ 1) if data[:2] == b"\xff\xd8" else image

    monkeypatch.setattr(Preprocess, "decode", decode)
    (check,) = [check for check in verify(folder)["checks"]["fp32"] if check.drawing.format == "JPEG"]
    assert check.passed
    assert not check.decoded
    assert check.difference > 1e-3


def test_a_file_without_golden_inputs_or_of_another_formula_is_refused(folder, tmp_path, capsys) -> None:
    assert exit_code("verify", rewritten(folder, tmp_path, golden=None)) == 2
    assert "holds no golden inputs" in capsys.readouterr().err
    record = dict(read_info(folder / "model.safetensors").golden)
    for changes, reason in (
        ({"formula": 2}, "formula 2"),
        ({"classes": ["a", "b", "c"]}, "other classes"),
        ({"inputs": [{"name": "landscape"}]}, "logits"),
    ):
        with pytest.raises(InputError, match=reason):
            verify(rewritten(folder, tmp_path, golden=record | changes))


def test_verify_prints_json(folder, capsys) -> None:
    assert exit_code("verify", folder, "--precision", "fp32", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["checks"]) == ["fp32"]
    assert len(found["checks"]["fp32"]) == 7
    assert all(check["passed"] for check in found["checks"]["fp32"])


def test_the_same_model_gives_the_same_bytes(folder, tmp_path) -> None:
    torch.set_num_threads(2)
    again = write_model(tmp_path, precision="bf16")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------------- inspect


def test_inspect_says_what_is_inside(folder, capsys) -> None:
    assert exit_code("inspect", folder) == 0
    said = capsys.readouterr().out
    for wanted in (
        "classes, 3: blue_waves, green_stripes, red_checks", "accuracy 75.0 %, 30 of 40, 95 % interval 60.0 to 86.0 %",
        "image_size 32", "interpolation bilinear", "calibration: none", "upright gray", "fc.weight  F32 [3, 512]",
        "torch 2", "frozen_head from bundled weights",
    ):  # fmt: skip
        assert wanted in said


def test_inspect_json_is_the_whole_header(folder, capsys) -> None:
    assert exit_code("inspect", folder / "model.safetensors", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        expected = {name.removeprefix("headstart."): text for name, text in file.metadata().items()}
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found["other"] == {"format": expected.pop("format")}
    assert found["metadata"] == {name: json.loads(text) for name, text in expected.items()}
    assert {name: entry["shape"] for name, entry in found["tensors"].items()} == shapes
    assert found["bytes"] == (folder / "model.safetensors").stat().st_size


def test_inspect_says_what_calibration_there_is(tmp_path, capsys) -> None:
    assert exit_code("inspect", write_model(tmp_path, calibrated=True)) == 0
    assert "temperature 1.700 fitted on 60 validation logits, prediction sets, none of these" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 4, 500, 100_000, -1])
def test_a_truncated_file_is_refused_by_inspect(kept, folder, tmp_path, capsys) -> None:
    (tmp_path / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:kept])
    assert exit_code("inspect", tmp_path / "cut.safetensors") == 2
    said = capsys.readouterr().err
    assert "cannot be read as a model file" in said
    assert said.count("\n") == 1


def test_foreign_files_are_refused_by_inspect(tmp_path, capsys) -> None:
    from safetensors.torch import save_file

    save_file({"fc.weight": tensors_of()["fc.weight"]}, tmp_path / "foreign.safetensors")
    assert exit_code("inspect", tmp_path / "foreign.safetensors") == 2
    assert "holds no headstart model" in capsys.readouterr().err
    assert exit_code("inspect", tmp_path / "nowhere") == 2


def test_inspect_needs_no_torch(folder) -> None:
    code = (
        "import sys\nfrom headstart import cli\n"
        f"try: cli.main(['inspect', {str(folder)!r}])\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
