"""A trained model flags noise, blank sheets and text as "none of these", and seldom images of its classes."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support import REPOSITORY
from support.runs import small

import headstart
from headstart.model.model_file import read_info
from headstart.training.run import run


@pytest.fixture(scope="module")
def drawings() -> ModuleType:
    """The off-topic images of benchmarks/none_of_these.py."""
    path = REPOSITORY / "benchmarks" / "none_of_these.py"
    spec = importlib.util.spec_from_file_location("none_of_these", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_off_topic_images_are_flagged_and_images_of_the_classes_seldom(
    image_folder, draw_image, drawings: ModuleType, tmp_path: Path
) -> None:
    root = image_folder(train=20, val=20)
    config = small(
        root,
        tmp_path / "run",
        strategy="frozen_head",
        data={"image_size": 64},
        runtime={"bank": str(tmp_path / "bank")},
    )
    folder = run(replace(config, strategy=replace(config.strategy, features="bank")))
    model = headstart.load(folder)
    odd = drawings.off_topic(per_kind=3, seed=0)
    assert {kind for kind, _ in odd} == set(drawings.KINDS)
    flagged = [row.none_of_these for row in model.predict([image for _, image in odd])]
    own = [
        row.none_of_these for row in model.predict([draw_image(code, 500 + k) for code in range(3) for k in range(10)])
    ]
    assert len(flagged) == 24
    assert np.mean(flagged) >= 0.9
    assert np.mean(own) <= 0.15

    info, summary = read_info(folder / "model.safetensors"), json.loads((folder / "summary.json").read_text())
    assert info.calibration is not None
    assert info.calibration.open_set is not None
    assert info.calibration.open_set.held_out  # the backbone has not seen the training images either
    assert len(info.calibration.open_set.reference) == summary["calibration"]["none_of_these"]["reference_images"] == 60
    assert info.calibration.fitted_on == "out-of-fold logits"
    assert info.calibration.conformal.exact
    assert summary["calibration"]["temperature"] == info.calibration.temperature


@pytest.mark.slow
def test_the_reference_features_of_a_fine_tuned_model_are_those_that_predict_computes(
    tiny_data, tmp_path: Path
) -> None:
    """15 validation images in batches of 8: their features are kept by the last evaluation, each once and in order."""
    folder = run(small(tiny_data, tmp_path / "run", train={"epochs": 1}))
    model = headstart.load(folder)
    calibration = model.info.calibration
    assert calibration is not None
    assert calibration.fitted_on == "validation logits"
    assert calibration.conformal.exact  # of one epoch there is none to choose
    assert calibration.open_set is not None
    paths = sorted((tiny_data / "val").rglob("*.*"))
    embeddings = np.stack([row.embedding for row in model.predict([str(path) for path in paths], embeddings=True)])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert calibration.open_set.reference == pytest.approx(unit, abs=1e-4)
