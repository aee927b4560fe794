"""A network disk that fails after the scan costs a sentence or a gray picture, not the run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.config import DataConfig, RunConfig
from headstart.data.manifest import build_manifest
from headstart.data.samples import Manifest
from headstart.data.sources.open import open_source
from headstart.data.transforms import Preprocess
from headstart.errors import InputError, OwnInputError
from headstart.evaluation.predictions import Predictions
from headstart.features.extraction import bank_transforms
from headstart.model.backbones import find_backbone
from headstart.training.finish import draw_predictions
from headstart.training.next_commands import next_commands
from headstart.training.train_head import draw_train_batch

SPEC = Preprocess.of(DataConfig(image_size=32), find_backbone("resnet18"))


@pytest.fixture
def gone(image_folder: Callable[..., Path]) -> Manifest:
    root = image_folder(train=2, val=2)
    manifest = build_manifest(open_source(DataConfig(root=str(root))), DataConfig(), seed=0)
    shutil.rmtree(root)
    return manifest


def test_the_picture_of_the_predictions_shows_gray(gone: Manifest, tmp_path: Path) -> None:
    labels = gone.of("val").codes(gone.classes)
    logits = np.eye(3, dtype=np.float32)[labels]
    draw_predictions(tmp_path / "a.png", gone, Predictions(logits, labels, None), SPEC)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 32


def test_the_picture_of_the_training_images_is_one_sentence(gone: Manifest, tmp_path: Path) -> None:
    session: Any = SimpleNamespace(config=RunConfig(), spec=SPEC)
    transforms = bank_transforms(DataConfig(image_size=32), SPEC, augmented_copies=0, seed=0)
    with pytest.raises(OwnInputError, match="was readable when the run began"):
        draw_train_batch(session, gone, transforms, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_the_last_lines_do_not_need_the_images(gone: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Any, **_: Any) -> Any:
        raise OSError(116, os.strerror(116), str(path))

    monkeypatch.setattr(Path, "is_file", fail)
    lines = list(next_commands(tmp_path, RunConfig(data=DataConfig(root=gone.root)), gone))
    assert not any("predict" in line for line in lines)


def test_a_benchmark_names_the_image(gone: Manifest) -> None:
    from headstart.data.transforms import train_transform
    from headstart.diagnostics.bench_input import _stages

    transform = train_transform(DataConfig(image_size=32), SPEC)
    with pytest.raises(InputError, match="readable"):
        _stages(gone.of("train"), transform, SPEC, seed=0, cores=1)
