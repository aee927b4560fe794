"""A loaded model: the logits that were measured, whatever an image is given as; what is no image is refused in one sentence."""

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support import REPOSITORY
from support.models import write_model
from support.runs import small

import headstart
from headstart import InputError
from headstart.artifacts import load_model
from headstart.start import run

NOT_NEEDED = [
    "torchvision",
    "accelerate",
    "datasets",
    "evaluate",
    "pyarrow",
    "pandas",
    "matplotlib",
    "rich",
    "jsonargparse",
]


@pytest.fixture(scope="module")
def network(tiny_data, tmp_path_factory) -> Path:
    """A run that was measured by the network in bf16."""
    out = tmp_path_factory.mktemp("runs") / "network"
    return run(small(tiny_data, out, strategy="frozen_head", train={"epochs": 1}, runtime={"mixed_precision": "bf16"}))


@pytest.fixture(scope="module")
def on_bank(tiny_data, tmp_path_factory) -> Path:
    """A run that was measured by the folded trunk in fp32 and the head in float64."""
    out = tmp_path_factory.mktemp("runs") / "bank"
    config = small(tiny_data, out, strategy="frozen_head", runtime={"bank": str(out.with_name("features"))})
    return run(replace(config, strategy=replace(config.strategy, features="bank")))


@pytest.fixture(scope="module")
def photo(tiny_data) -> Path:
    return sorted((tiny_data / "val").rglob("*.png"))[0]


@pytest.mark.parametrize("which", ["network", "on_bank"])
def test_the_probabilities_are_those_of_the_measurement(which, request, tiny_data) -> None:
    folder = request.getfixturevalue(which)
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    predictor = headstart.load(folder)
    predictions = predictor.predict([tiny_data / row["path"] for row in rows], calibrated=False)
    assert len(rows) == len(predictions) == 15
    for row, prediction in zip(rows, predictions, strict=True):
        assert tuple(prediction.probabilities) == predictor.classes
        assert list(prediction.probabilities.values()) == pytest.approx(row["probabilities"], abs=1e-6)
        assert prediction.label == row["predicted"]
        assert prediction.path == str(tiny_data / row["path"])


def test_without_torchvision_the_network_computes_the_same_bits(network) -> None:
    model, info = load_model(network / "model.safetensors")
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = info.preprocess.normalize(pixels).contiguous(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    for precision in ("fp32", "bf16"):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected = model(normal).float()
        outputs = headstart.load(network, precision=precision).compute(pixels)
        assert torch.equal(torch.from_numpy(outputs.logits), expected)
        assert outputs.features.shape == (5, 512)


def test_a_prediction_does_not_depend_on_the_images_beside_it(on_bank, tiny_data) -> None:
    paths = sorted((tiny_data / "val").rglob("*.*"))
    predictor = headstart.load(on_bank)
    together = predictor.predict(paths, batch_size=7)
    for path, prediction in zip(paths, together, strict=True):
        alone = predictor.predict(path)[0]
        assert alone.label == prediction.label
        assert list(alone.probabilities.values()) == pytest.approx(list(prediction.probabilities.values()), abs=1e-5)


# ------------------------------------------------------------------------------------------------- what is an image


def array_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


SAME: dict[str, Callable[[Path], object]] = {
    "path": lambda path: path,
    "str": str,
    "bytes": lambda path: path.read_bytes(),
    "PIL": Image.open,
    "PIL with alpha": lambda path: Image.open(path).convert("RGBA"),
    "uint8 array": array_of,
    "array that is not contiguous": lambda path: np.asfortranarray(array_of(path)),
    "RGBA array": lambda path: np.dstack([array_of(path), np.full((48, 64), 255, np.uint8)]),
    "float array": lambda path: array_of(path) / 255,
    "float32 array": lambda path: (array_of(path) / 255).astype(np.float32),
    "batch of one": lambda path: array_of(path)[None],
    "uint8 tensor": lambda path: torch.from_numpy(array_of(path)).permute(2, 0, 1),
    "float tensor": lambda path: torch.from_numpy(array_of(path)).permute(2, 0, 1).float().div(255).requires_grad_(),
    "batch tensor": lambda path: torch.from_numpy(array_of(path)).permute(2, 0, 1)[None],
}


@pytest.mark.parametrize("kind", SAME)
def test_an_image_is_the_same_image_however_it_is_given(kind, on_bank, photo) -> None:
    predictor = headstart.load(on_bank)
    expected = predictor.predict(photo)[0]
    given = SAME[kind](photo)
    (found,) = predictor.predict([given])
    assert found.probabilities == expected.probabilities
    assert torch.equal(predictor.view(given), predictor.view(photo))
    assert predictor.predict(given)[0].probabilities == expected.probabilities


def test_gray_images_of_8_and_16_bits_are_what_their_files_are(on_bank) -> None:
    predictor = headstart.load(on_bank)
    gray = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30
    for values in (gray, (gray >> 8).astype(np.uint8)):
        file = io.BytesIO()
        Image.fromarray(values).save(file, "PNG")
        for given in (values, values[..., None], values[None, ..., None], torch.from_numpy(values)[None]):
            assert torch.equal(predictor.view(given), predictor.view(file.getvalue())), given.shape


def test_the_orientation_of_an_opened_image_is_applied_and_the_image_is_left_as_it_was(
    on_bank, tmp_path, photo
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = tmp_path / "turned.png"
    Image.open(photo).save(turned, exif=exif)
    predictor = headstart.load(on_bank)
    with Image.open(turned) as image:
        assert torch.equal(predictor.view(image), predictor.view(turned))
        assert image.size == (64, 48)
        assert image.getexif()[274] == 6
    assert not torch.equal(predictor.view(turned), predictor.view(photo))


def test_several_images_in_one_array_are_several_predictions(on_bank, photo) -> None:
    one = array_of(photo)
    predictor = headstart.load(on_bank)
    found = predictor.predict([np.stack([one, 255 - one, one]), photo])
    assert len(found) == 4
    assert found[0].probabilities == found[2].probabilities == found[3].probabilities != found[1].probabilities


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_a_tensor_of_any_floating_point_is_its_values(dtype, on_bank) -> None:
    tensor = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    predictor = headstart.load(on_bank)
    assert torch.equal(predictor.view(tensor), predictor.view(tensor.float()))


def test_a_tensor_that_is_yet_to_be_negated_and_an_array_of_the_other_byte_order_are_their_values(on_bank) -> None:
    predictor = headstart.load(on_bank)
    negated = torch._neg_view(-torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)))
    assert negated.is_neg()
    assert torch.equal(predictor.view(negated), predictor.view(negated.resolve_neg()))
    gray = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30
    for kind in (">u2", "<u2"):
        assert torch.equal(predictor.view(gray.astype(kind)), predictor.view(gray))
    shares = (gray / 65535).astype(">f4")
    assert torch.equal(predictor.view(shares), predictor.view(shares.astype("<f4")))


@pytest.mark.parametrize("options", [{"top": "x"}, {"top": 1.5}, {"top": None}, {"batch_size": 2.0}])
def test_a_number_that_is_none_is_refused(options, on_bank, photo) -> None:
    with pytest.raises(InputError, match=r"it must be a whole number of at least 1"):
        headstart.load(on_bank).predict(photo, **options)


@pytest.mark.parametrize("run", [3, None, b"run"])
def test_what_is_no_name_of_a_run_is_refused(run) -> None:
    with pytest.raises(InputError, match=r"name a run folder or a model.safetensors"):
        headstart.load(run)


REFUSED = {
    "a sparse tensor": (torch.zeros(3, 40, 50).to_sparse(), "a sparse tensor; give a dense one"),
    "a tensor without values": (torch.zeros(3, 40, 50, device="meta"), "meta"),
    "complex numbers": (torch.zeros(3, 40, 50, dtype=torch.complex64), "of complex64; it must be uint8"),
    "a stack of gray": (np.zeros((5, 40, 50), np.uint8), r"several as \(n, H, W, 1\)"),
    "BGR planes first": (np.zeros((3, 40, 50), np.uint8), r"shape \(3, 40, 50\); it must be \(H, W\) gray"),
    "planes last in a tensor": (torch.zeros(40, 50, 3, dtype=torch.uint8), r"\(40, 50, 3\); it must be \(1, H, W\)"),
    "two channels": (np.zeros((40, 50, 2), np.uint8), "must be"),
    "a row": (np.zeros(40, np.uint8), "must be"),
    "no pixels": (np.zeros((0, 50, 3), np.uint8), "must be"),
    "int64": (np.zeros((40, 50, 3), np.int64), "of int64; it must be uint8"),
    "bool": (np.zeros((40, 50), bool), "of bool; it must be uint8"),
    "16-bit colour": (np.zeros((40, 50, 3), np.uint16), "gray"),
    "floats up to 255": (np.full((40, 50, 3), 255.0), "from 255 to 255; floating point must lie in 0 to 1"),
    "normalised": (torch.full((3, 40, 50), -0.3), "nor normalised"),
    "not a number": (np.full((40, 50, 3), np.nan), "must lie in 0 to 1"),
    "a number": (7, "of type int"),
    "nothing": (None, "of type NoneType"),
    "a dict": ({"a": 1}, "image 0 is of type|give paths"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_in_one_sentence(kind, on_bank) -> None:
    value, reason = REFUSED[kind]
    for given in (value, [value]):
        if kind == "a dict" and given is value:
            continue  # iterating it gives its keys, which are paths
        with pytest.raises(InputError, match=reason) as caught:
            headstart.load(on_bank).predict(given)
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_prediction_with_an_error(on_bank, photo, tmp_path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    missing = tmp_path / "missing.jpg"
    found = headstart.load(on_bank).predict([tmp_path / "broken.jpg", photo, missing, b"", tmp_path])
    assert [prediction.error for prediction in found] == [
        "not an image that Pillow knows", None, "No such file or directory", "empty file (0 bytes)", "not a regular file",
    ]  # fmt: skip
    assert found[1].label is not None
    assert [found[0].label, found[0].probabilities, found[0].top, found[0].probability] == [None, None, (), None]
    assert headstart.load(on_bank).predict([missing])[0].error
    assert headstart.load(on_bank).predict([]) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_is_not_waited_for(on_bank, photo, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    found = headstart.load(on_bank).predict([tmp_path / "pipe.jpg", photo])
    assert [prediction.error for prediction in found] == ["not a regular file", None]


def test_what_is_too_long_and_thin_is_an_error_however_it_is_given(on_bank, tmp_path) -> None:
    thin = Image.new("L", (1, 20_000_000 // 37))
    thin.save(tmp_path / "thin.png")
    given = [tmp_path / "thin.png", (tmp_path / "thin.png").read_bytes(), thin, np.asarray(thin)]
    for prediction in headstart.load(on_bank).predict(given):
        assert prediction.error is not None
        assert "too long and thin to be resized" in prediction.error


def test_top_is_sorted_and_embeddings_come_on_request(on_bank, photo) -> None:
    (found,) = headstart.load(on_bank).predict(photo, top=2, embeddings=True)
    values = sorted(found.probabilities.items(), key=lambda item: -item[1])
    assert list(found.top) == values[:2]
    assert (found.label, found.probability) == values[0]
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.embedding.shape == (512,)
    assert found.embedding.dtype == np.float32
    assert headstart.load(on_bank).predict(photo)[0].embedding is None


def test_a_precision_or_device_that_is_not_there_is_refused(on_bank) -> None:
    for changes, reason in (
        ({"precision": "fp8"}, "must be one of measured, fp32"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a CUDA GPU"),
        ({"device": "warp"}, "device warp cannot be used here"),
        ({"device": "xpu"}, "device xpu cannot be used here"),
        ({"device": "meta"}, "device meta cannot be used here"),
    ):
        with pytest.raises(InputError, match=reason):
            headstart.load(on_bank, **changes)


def test_the_ten_lines_of_plain_torchvision_say_the_same(photo, tmp_path, capsys) -> None:
    page = (REPOSITORY / "docs" / "predict.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    (code,) = [block for block in blocks if "torchvision" in block]
    folder = write_model(tmp_path)
    exec(code.replace("runs/first", str(folder)).replace("a.jpg", str(photo)), {})
    theirs = ast.literal_eval(capsys.readouterr().out)
    ours = headstart.load(folder).predict(photo)[0].probabilities
    assert theirs == pytest.approx(ours, abs=1e-5)


def test_nothing_is_imported_that_is_not_needed(network, photo) -> None:
    code = (
        "import headstart, json, sys\n"
        f"label = headstart.load({str(network)!r}).predict({str(photo)!r})[0].label\n"
        f"print(json.dumps([label, sorted(set({NOT_NEEDED!r}) & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    label, imported = json.loads(done.stdout)
    assert label
    assert imported == []
