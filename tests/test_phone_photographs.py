"""Photographs of a phone, HEIC with a rotation and one of 12 megapixels, from training to every way of prediction."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import exit_code
from support.serving import BYTES, running

import headstart
from headstart.data.decode import EXTENSIONS, decode

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 3024, 4032  # upright; the sensor lies
TURNED_BY = 6  # Exif: the camera was held upright
LOSS = 0.02  # of a probability, by the codec


def upright(kind: int, number: int) -> Image.Image:
    """A disc or a bar on a gradient; the first disc in full size, the others at a sixth of it, as encoding is slow."""
    y, x = np.mgrid[0:672, 0:504]
    away = np.hypot(x - 150 - 80 * number, y - 300)
    shape = away < 100 + 30 * number if kind else np.abs(x - 150 - 80 * number) < 40
    picture = Image.fromarray(np.stack([x // 3, y // 4, np.where(shape, 230, 40)], axis=-1).astype(np.uint8))
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) if (kind, number) == (1, 0) else picture


def as_phone_writes(picture: Image.Image) -> bytes:
    """The sensor's pixels, and how to turn them: as a property of HEIF, and in Exif."""
    tags = Image.Exif()
    tags[0x0112] = TURNED_BY
    file = io.BytesIO()
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.save(file, "HEIF", quality=90, exif=tags.tobytes(), enc_params={"preset": "ultrafast"})
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """heic/ and png/: the same pictures, three of each class."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    root = tmp_path_factory.mktemp("photos")
    for kind, name in enumerate(("bar", "disc")):
        for folder in ("heic", "png"):
            (root / folder / name).mkdir(parents=True)
        for number in range(3):
            picture = upright(kind, number)
            (root / "heic" / name / f"IMG_{number}.HEIC").write_bytes(as_phone_writes(picture))
            picture.save(root / "png" / name / f"IMG_{number}.png", compress_level=1)
    return root


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    out = photos / "run"
    recipe = ("--model.weights", "bundled", "--data.image_size", 64, "--data.split", "stratified")
    assert exit_code("train", photos / "heic", *recipe, "--data.val_fraction", 0.34, "--out", out) == 0
    return out


def test_a_photograph_is_turned_upright(photos: Path) -> None:
    photo, picture = (photos / folder / "disc" / f"IMG_0{end}" for folder, end in (("heic", ".HEIC"), ("png", ".png")))
    found, expected = (np.asarray(decode(path.read_bytes())).astype(int) for path in (photo, picture))
    assert found.shape == expected.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(found - expected).mean() < 3


def test_every_way_of_prediction_gives_the_answer_for_the_same_picture_as_png(run: Path, photos: Path) -> None:
    model = headstart.load(run)
    names = [f"{name}/IMG_{number}" for name in ("bar", "disc") for number in range(3)]
    expected = [model.predict(photos / "png" / f"{name}.png")[0] for name in names]
    answers = [dict(one.top) for one in expected]

    def same(found: dict[str, float], answer: dict[str, float]) -> None:
        assert found == pytest.approx(answer, abs=LOSS)

    for name, answer in zip(names, answers, strict=True):
        same(dict(model.predict(photos / "heic" / f"{name}.HEIC")[0].top), answer)

    table = photos / "answers.csv"
    assert exit_code("predict", run, photos / "heic", "--out", table) == 0
    with table.open(newline="") as lines:
        rows = {row["path"]: row["predicted"] for row in csv.DictReader(lines)}
    assert [rows[path] for path in sorted(rows)] == [one.label for one in expected]

    with running(model) as server:
        for name, answer in zip(names, answers, strict=True):
            reply = server.ask("POST", "/predict?top=2", (photos / "heic" / f"{name}.HEIC").read_bytes(), BYTES)
            same({one["class"]: one["probability"] for one in reply.json["results"][0]["top"]}, answer)
        assert all(extension in server.ask("GET", "/").body.decode() for extension in EXTENSIONS)

    import onnxruntime

    assert exit_code("export", run, "--format", "onnx-uint8", "--out", photos / "model.onnx") == 0
    session = onnxruntime.InferenceSession(photos / "model.onnx")
    for name, answer in zip(names, answers, strict=True):
        pixels = np.asarray(decode((photos / "heic" / f"{name}.HEIC").read_bytes()))
        (found,) = session.run(["probabilities"], {"image": pixels})
        same(dict(zip(model.info.classes, found.tolist(), strict=True)), answer)
