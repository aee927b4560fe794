"""A loaded model gives the logits of the evaluation, in whatever form an image is passed; anything else is refused."""

import ast
import io
import json
import os
import re
import shutil
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
from headstart.model.model_file import load_model
from headstart.predict.predictor import Predictor
from headstart.training.run import run

NOT_NEEDED = [
    "torchvision",
    "accelerate",
    "datasets",
    "evaluate",
    "pyarrow",
    "pandas",
    "rich",
    "yaml",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model file with a random head, as from the feature bank."""
    return write_model(tmp_path_factory.mktemp("model"), measured_on="feature bank")


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return headstart.load(model)


@pytest.fixture(scope="module")
def bank_run(tiny_data, tmp_path_factory) -> Path:
    """A run that was evaluated with the folded trunk in fp32 and the head in float64."""
    out = tmp_path_factory.mktemp("runs") / "bank"
    config = small(tiny_data, out, strategy="frozen_head", runtime={"bank": str(out.with_name("features"))})
    return run(replace(config, strategy=replace(config.strategy, features="bank")))


@pytest.fixture(scope="module")
def photo(tiny_data) -> Path:
    return sorted((tiny_data / "val").rglob("*.png"))[0]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["bf16_run", "bank_run"])
def test_the_probabilities_are_those_of_the_evaluation(which, request, tiny_data) -> None:
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


def test_without_torchvision_the_network_computes_the_same_bits(tmp_path) -> None:
    folder = write_model(tmp_path, precision="bf16")
    model, info = load_model(folder / "model.safetensors")
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = info.preprocess.normalize(pixels).contiguous(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    for precision in ("fp32", "bf16"):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected = model(normal).float()
        outputs = headstart.load(folder, precision=precision).compute(pixels)
        assert torch.equal(torch.from_numpy(outputs.logits), expected)
        assert outputs.features.shape == (5, 512)


def test_a_prediction_does_not_depend_on_the_other_images(predictor, tiny_data) -> None:
    paths = sorted((tiny_data / "val").rglob("*.*"))
    together = predictor.predict(paths, batch_size=7)
    for path, prediction in zip(paths, together, strict=True):
        alone = predictor.predict(path)[0]
        assert alone.label == prediction.label
        assert list(alone.probabilities.values()) == pytest.approx(list(prediction.probabilities.values()), abs=1e-5)


# ------------------------------------------------------------------------------------------------- forms of an image


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
def test_every_form_of_an_image_gives_the_same_prediction(kind, predictor, photo) -> None:
    expected = predictor.predict(photo)[0]
    given = SAME[kind](photo)
    (found,) = predictor.predict([given])
    assert found.probabilities == expected.probabilities
    assert torch.equal(predictor.transform(given), predictor.transform(photo))
    assert predictor.predict(given)[0].probabilities == expected.probabilities


def test_gray_arrays_of_8_and_16_bits_equal_their_files(predictor) -> None:
    gray = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30
    for values in (gray, (gray >> 8).astype(np.uint8)):
        file = io.BytesIO()
        Image.fromarray(values).save(file, "PNG")
        for given in (values, values[..., None], values[None, ..., None], torch.from_numpy(values)[None]):
            assert torch.equal(predictor.transform(given), predictor.transform(file.getvalue())), given.shape


def test_the_orientation_of_an_opened_image_is_applied_and_the_image_is_not_changed(predictor, tmp_path, photo) -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = tmp_path / "turned.png"
    Image.open(photo).save(turned, exif=exif)
    with Image.open(turned) as image:
        assert torch.equal(predictor.transform(image), predictor.transform(turned))
        assert image.size == (64, 48)
        assert image.getexif()[274] == 6
    assert not torch.equal(predictor.transform(turned), predictor.transform(photo))


def test_several_images_in_one_array_are_several_predictions(predictor, photo) -> None:
    one = array_of(photo)
    found = predictor.predict([np.stack([one, 255 - one, one]), photo])
    assert len(found) == 4
    assert found[0].probabilities == found[2].probabilities == found[3].probabilities != found[1].probabilities


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_a_tensor_of_any_floating_point_type_is_read_by_its_values(dtype, predictor) -> None:
    tensor = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(predictor.transform(tensor), predictor.transform(tensor.float()))


def test_a_lazily_negated_tensor_and_an_array_of_either_byte_order_are_read_by_their_values(predictor) -> None:
    negated = torch._neg_view(-torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)))
    assert negated.is_neg()
    assert torch.equal(predictor.transform(negated), predictor.transform(negated.resolve_neg()))
    gray = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30
    for kind in (">u2", "<u2"):
        assert torch.equal(predictor.transform(gray.astype(kind)), predictor.transform(gray))
    shares = (gray / 65535).astype(">f4")
    assert torch.equal(predictor.transform(shares), predictor.transform(shares.astype("<f4")))


@pytest.mark.parametrize("options", [{"top": "x"}, {"top": 1.5}, {"top": None}, {"batch_size": 2.0}])
def test_an_option_that_is_not_a_whole_number_is_refused(options, predictor, photo) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=rf"{name} .*{value}.* at least 1"):
        predictor.predict(photo, **options)


@pytest.mark.parametrize("run", [3, None, b"run"])
def test_a_run_that_is_not_a_path_is_refused(run) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors"):
        headstart.load(run)


REFUSED = {
    "a sparse tensor": (torch.zeros(3, 40, 50).to_sparse(), "sparse"),
    "a tensor without values": (torch.zeros(3, 40, 50, device="meta"), "meta"),
    "complex numbers": (torch.zeros(3, 40, 50, dtype=torch.complex64), "complex64.*uint8"),
    "a stack of gray": (np.zeros((5, 40, 50), np.uint8), r"\(5, 40, 50\).*\(n, H, W, 1\)"),
    "BGR planes first": (np.zeros((3, 40, 50), np.uint8), r"\(3, 40, 50\).*\(H, W\)"),
    "planes last in a tensor": (torch.zeros(40, 50, 3, dtype=torch.uint8), r"\(40, 50, 3\).*\(1, H, W\)"),
    "two channels": (np.zeros((40, 50, 2), np.uint8), r"\(40, 50, 2\)"),
    "a row": (np.zeros(40, np.uint8), r"\(40,\)"),
    "no pixels": (np.zeros((0, 50, 3), np.uint8), r"\(0, 50, 3\)"),
    "int64": (np.zeros((40, 50, 3), np.int64), "int64.*uint8"),
    "bool": (np.zeros((40, 50), bool), "bool.*uint8"),
    "16-bit colour": (np.zeros((40, 50, 3), np.uint16), r"uint16|\(40, 50, 3\)"),
    "floats up to 255": (np.full((40, 50, 3), 255.0), "255.* 0 to 1"),
    "normalised": (torch.full((3, 40, 50), -0.3), "-0.3.* 0 to 1"),
    "not a number": (np.full((40, 50, 3), np.nan), "nan.* 0 to 1"),
    "a number": (7, r"\bint\b"),
    "nothing": (None, "NoneType"),
    "a dict": ({"a": 1}, r"\bdict\b|paths"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_value_that_is_not_an_image_is_refused_in_one_line(kind, predictor) -> None:
    value, reason = REFUSED[kind]
    for given in (value, [value]):
        if kind == "a dict" and given is value:
            continue  # iterating it gives its keys, which are paths
        with pytest.raises(InputError, match=reason) as caught:
            predictor.predict(given)
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_prediction_with_an_error(predictor, photo, tmp_path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    missing = tmp_path / "missing.jpg"
    found = predictor.predict([tmp_path / "broken.jpg", photo, missing, b""], errors="row")
    patterns = ["image", None, "(?i)no such file", "(?i)empty"]
    for prediction, pattern in zip(found, patterns, strict=True):
        assert prediction.error is None if pattern is None else re.search(pattern, prediction.error)
    assert len({prediction.error for prediction in found}) == 4
    assert found[1].label is not None
    assert [found[0].label, found[0].probabilities, found[0].top, found[0].probability] == [None, None, (), None]
    assert predictor.predict([missing], errors="row")[0].error
    with pytest.raises(InputError, match=re.escape(missing.name)):
        predictor.predict([photo, missing])


def test_a_folder_in_a_list_stands_for_its_images(predictor, photo, tmp_path) -> None:
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photo, tmp_path / name)
    found = predictor.predict([photo, tmp_path])
    assert [prediction.path for prediction in found] == [str(photo), str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert predictor.predict([]) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_named_pipe_is_refused_without_reading_it(predictor, photo, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    found = predictor.predict([tmp_path / "pipe.jpg", photo], errors="row")
    assert [prediction.error is None for prediction in found] == [False, True]


def test_an_image_that_is_too_long_and_thin_is_an_error_in_every_form(predictor, tmp_path) -> None:
    thin = Image.new("L", (1, 20_000_000 // 37))
    thin.save(tmp_path / "thin.png")
    given = [tmp_path / "thin.png", (tmp_path / "thin.png").read_bytes(), thin, np.asarray(thin)]
    for prediction in predictor.predict(given, errors="row"):
        assert prediction.error is not None
        assert "thin" in prediction.error


def test_top_is_sorted_and_embeddings_come_on_request(predictor, photo) -> None:
    (found,) = predictor.predict(photo, top=2, embeddings=True)
    values = sorted(found.probabilities.items(), key=lambda item: -item[1])
    assert list(found.top) == values[:2]
    assert (found.label, found.probability) == values[0]
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.embedding.shape == (512,)
    assert found.embedding.dtype == np.float32
    assert predictor.predict(photo)[0].embedding is None


def test_an_unknown_precision_or_an_absent_device_is_refused(model) -> None:
    for changes, reason in (
        ({"precision": "fp8"}, "fp8.*fp32"),
        ({"precision": "fp16", "device": "cpu"}, "fp16.*CUDA"),
        ({"device": "warp"}, "device warp"),
        ({"device": "xpu"}, "device xpu"),
        ({"device": "meta"}, "device meta"),
    ):
        with pytest.raises(InputError, match=reason):
            headstart.load(model, **changes)


def test_the_plain_torchvision_code_of_the_page_gives_the_same_probabilities(photo, tmp_path, capsys) -> None:
    page = (REPOSITORY / "docs" / "how-to" / "predict.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    (code,) = [block for block in blocks if "torchvision" in block]
    folder = write_model(tmp_path)
    exec(code.replace("runs/first", str(folder)).replace("a.jpg", str(photo)), {})
    theirs = ast.literal_eval(capsys.readouterr().out)
    ours = headstart.load(folder).predict(photo)[0].probabilities
    assert theirs == pytest.approx(ours, abs=1e-5)


@pytest.mark.slow
def test_nothing_is_imported_that_is_not_needed(model, photo) -> None:
    code = (
        "import headstart, json, sys\n"
        f"label = headstart.load({str(model)!r}).predict({str(photo)!r})[0].label\n"
        f"print(json.dumps([label, sorted(set({NOT_NEEDED!r}) & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    label, imported = json.loads(done.stdout)
    assert label
    assert imported == []
