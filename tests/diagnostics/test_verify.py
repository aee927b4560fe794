"""headstart verify detects every fault between image file and logits; headstart inspect prints the model file."""

import json
import re
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

from headstart import InputError
from headstart.cli.main import main
from headstart.data.transforms import Preprocess
from headstart.diagnostics.verify import verify
from headstart.model import golden_inputs
from headstart.model.model_file import load_tensors, read_info, save_model_tensors, save_tensors
from headstart.results import Verification
from headstart.runtime.accelerator import versions


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), precision="bf16")


def exit_code(*argv: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return end.value.code


def test_an_intact_file_passes_in_fp32_and_in_its_own_precision(folder, capsys) -> None:
    assert exit_code("verify", folder) == 0
    printed = capsys.readouterr().out
    for fragment in ("fp32: pass", "bf16: pass", "cpu", f"torch {versions()['torch']}"):
        assert fragment in printed
    found = verify(folder)
    assert [list(found.checks), found.passed] == [["fp32", "bf16"], True]
    for checks in found.checks.values():
        assert [check.drawing.name for check in checks] == [drawing.name for drawing in golden_inputs.DRAWINGS]
        assert all(check.transform and check.decoded for check in checks)
    assert max(check.difference for check in found.checks["fp32"]) < 1e-4
    assert max(check.difference for check in found.checks["bf16"]) > 1e-4, "bf16 must not be fp32 in disguise"


@pytest.mark.parametrize("measured_on", ["network", "feature bank"])
def test_golden_logits_equal_those_of_plain_torchvision(measured_on, tmp_path) -> None:
    folder = write_model(tmp_path, measured_on=measured_on)
    info = read_info(folder / "model.safetensors")
    model = resnet18(num_classes=3)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    transforms = torch.stack(
        [info.preprocess.resize_and_crop(info.preprocess.decode(golden_inputs.draw(n))) for n in range(7)]
    )
    with torch.inference_mode():
        expected = model.eval()(info.preprocess.normalize(transforms)).numpy()
    recorded = np.array([entry["logits"] for entry in info.golden["inputs"]])
    assert np.abs(recorded - expected).max() < 1e-4
    assert np.abs(expected).max() > 1


def test_the_drawings_are_odd_and_go_through_every_conversion() -> None:
    images = [Image.open(path) for path in map(_file, range(len(golden_inputs.DRAWINGS)))]
    assert [image.mode for image in images] == ["RGB", "L", "P", "RGBA", "I;16", "RGB", "RGB"]
    assert {image.format for image in images} == {"PNG", "JPEG"}
    assert images[5].getexif()[274] == 6
    assert len({image.size for image in images}) == 7
    assert golden_inputs.draw(0) == golden_inputs.draw(0)


def _file(number: int):
    import io

    return io.BytesIO(golden_inputs.draw(number))


def test_the_drawings_follow_the_documented_formula() -> None:
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
    def transform(self: Preprocess, image: Image.Image) -> torch.Tensor:
        square = image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    monkeypatch.setattr(Preprocess, "resize_and_crop", transform)


def crop_off_by_one(monkeypatch) -> None:
    original = Image.Image.crop
    moved = lambda self, box: original(self, (box[0] + 1, box[1], box[2] + 1, box[3]))  # noqa: E731
    monkeypatch.setattr(Image.Image, "crop", moved)


def blue_first(monkeypatch) -> None:
    original = Preprocess.resize_and_crop
    monkeypatch.setattr(Preprocess, "resize_and_crop", lambda self, image: original(self, image).flip(0))


def orientation_ignored(monkeypatch) -> None:
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda image, in_place: None)


def alpha_dropped(monkeypatch) -> None:
    monkeypatch.setattr("headstart.data.decode._to_rgb", lambda image: image.convert("RGB"))


def not_normalised(monkeypatch) -> None:
    monkeypatch.setattr(Preprocess, "normalize", lambda self, pixels: pixels.float().div(255))


FAULTS: dict[str, tuple[Callable, str]] = {
    "interpolation": (bicubic, "transform"),
    "squeezed instead of cropped": (squeezed, "transform"),
    "crop": (crop_off_by_one, "transform"),
    "channel order": (blue_first, "transform"),
    "orientation": (orientation_ignored, "decoder"),
    "alpha and 16 bits": (alpha_dropped, "decoder"),
    "normalisation": (not_normalised, "network"),
}


def fault_in(found: Verification) -> str:
    """The first stage that is not as it was, by the failed checks."""
    broken = [check for checks in found.checks.values() for check in checks if not check.passed]
    assert broken
    if not all(check.decoded for check in broken):
        return "decoder"
    return "network" if all(check.transform for check in broken) else "transform"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_preprocessing_is_detected_and_its_stage_is_known(fault, folder, monkeypatch) -> None:
    break_it, stage = FAULTS[fault]
    break_it(monkeypatch)
    found = verify(folder, precision="fp32")
    assert not found.passed
    assert fault_in(found) == stage


@pytest.mark.parametrize(
    ("fault", "fragments"), [("crop", "crop"), ("orientation", "decoded"), ("normalisation", "weights")]
)
def test_a_failed_verification_ends_with_exit_code_1_and_names_the_stage(
    fault, fragments, folder, monkeypatch, capsys
) -> None:
    FAULTS[fault][0](monkeypatch)
    assert exit_code("verify", folder, "--precision", "fp32") == 1
    table, _, conclusion = capsys.readouterr().out.rpartition("fp32: FAIL")
    assert "FAIL" in table
    assert fragments in conclusion


def rewritten(folder: Path, to: Path, *, head: list[int] | None = None, **changes: object) -> Path:
    tensors, info = load_tensors(folder / "model.safetensors")
    if head is not None:
        tensors = tensors | {f"fc.{name}": tensors[f"fc.{name}"][head] for name in ("weight", "bias")}
    save_model_tensors(to / "model.safetensors", tensors, replace(info, **changes))
    return to


def test_classes_in_another_order_are_detected(folder, tmp_path) -> None:
    swapped = (CLASSES[1], CLASSES[0], CLASSES[2])
    found = verify(rewritten(folder, tmp_path, classes=swapped), precision="fp32")
    assert not found.passed
    assert fault_in(found) == "network"


def test_a_head_in_another_order_is_detected_and_with_its_names_it_is_the_same_model(folder, tmp_path) -> None:
    assert not verify(rewritten(folder, tmp_path, head=[1, 0, 2]), precision="fp32").passed
    both = rewritten(folder, tmp_path, head=[1, 0, 2], classes=(CLASSES[1], CLASSES[0], CLASSES[2]))
    assert verify(both, precision="fp32").passed


def test_other_weights_are_detected(folder, tmp_path) -> None:
    tensors, info = load_tensors(folder / "model.safetensors")
    tensors["layer4.1.bn2.running_var"] = tensors["layer4.1.bn2.running_var"] * 1.1
    save_model_tensors(tmp_path / "model.safetensors", tensors, info)
    assert not verify(tmp_path, precision="fp32").passed


def test_a_flipped_bit_of_a_tensor_is_detected_although_no_logit_shows_it(folder, tmp_path, capsys) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1000] ^= 1  # the last bit of a number
    (tmp_path / "model.safetensors").write_bytes(data)
    assert exit_code("verify", tmp_path, "--precision", "fp32") == 1
    printed = capsys.readouterr().out
    assert "tensors: FAIL" in printed
    assert "fp32: pass" in printed
    assert verify(folder, precision="fp32").tensors_unchanged is True


def test_a_file_of_a_version_without_the_hash_of_its_tensors_is_verified(folder, tmp_path, capsys) -> None:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        header = {name: text for name, text in file.metadata().items() if name != "headstart.tensors_sha256"}
    save_tensors(tmp_path / "model.safetensors", load_file(folder / "model.safetensors"), header)
    assert exit_code("verify", tmp_path, "--precision", "fp32") == 0
    assert "FAIL" not in capsys.readouterr().out
    assert verify(tmp_path, precision="fp32").tensors_unchanged is None


def test_another_jpeg_decoder_is_detected_and_accepted_within_its_tolerance(folder, monkeypatch) -> None:
    original = Preprocess.decode

    def decode(self: Preprocess, data: bytes) -> Image.Image:
        image = original(self, data)
        return image.point(lambda value: value ^ 1) if data[:2] == b"\xff\xd8" else image

    monkeypatch.setattr(Preprocess, "decode", decode)
    (check,) = [check for check in verify(folder, precision="fp32").checks["fp32"] if check.drawing.format == "JPEG"]
    assert check.passed
    assert not check.decoded
    assert check.difference > 1e-3


def test_a_file_without_golden_inputs_or_of_another_formula_is_refused(folder, tmp_path, capsys) -> None:
    assert exit_code("verify", rewritten(folder, tmp_path, golden=None)) == 2
    assert str(tmp_path / "model.safetensors") in capsys.readouterr().err
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


def test_inspect_prints_the_description_of_the_model(folder, capsys) -> None:
    assert exit_code("inspect", folder, "--tensors") == 0
    printed = capsys.readouterr().out
    for pattern in (
        r"\b3\b.*blue_waves, green_stripes, red_checks",
        r"75\.0\s?%.*\b30 of 40\b.*60\.0\D+86\.0\s?%",
        "image_size 32",
        "interpolation bilinear",
        "calibration: none",
        "upright gray",
        r"fc\.weight +F32 \[3, 512\]",
        r"torch \d",
        r"frozen_head.*bundled",
    ):
        assert re.search(pattern, printed), pattern


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


def test_inspect_prints_the_calibration(tmp_path, capsys) -> None:
    assert exit_code("inspect", write_model(tmp_path, calibrated=True)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "temperature" in line]
    for fragment in ("1.700", "60 validation logits", "prediction sets", "none of these"):
        assert fragment in line


@pytest.mark.parametrize("kept", [0, 4, 500, 100_000, -1])
def test_a_truncated_file_is_refused_by_inspect(kept, folder, tmp_path, capsys) -> None:
    (tmp_path / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:kept])
    assert exit_code("inspect", tmp_path / "cut.safetensors") == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "cut.safetensors") in error
    assert error.count("\n") == 1


def test_foreign_files_are_refused_by_inspect(tmp_path, capsys) -> None:
    from safetensors.torch import save_file

    save_file({"fc.weight": tensors_of()["fc.weight"]}, tmp_path / "foreign.safetensors")
    assert exit_code("inspect", tmp_path / "foreign.safetensors") == 2
    assert str(tmp_path / "foreign.safetensors") in capsys.readouterr().err
    assert exit_code("inspect", tmp_path / "nowhere") == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_inspect_needs_no_torch(folder) -> None:
    code = (
        "import sys\nfrom headstart.cli import main as cli\n"
        f"try: cli.main(['inspect', {str(folder)!r}])\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
