"""Model files that several test files look at, written without training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from headstart.backbones import RESNET18
from headstart.data.transforms import Preprocess
from headstart.model import golden_inputs
from headstart.model.calibration import Calibration
from headstart.model.conformal import fit_conformal
from headstart.model.model_file import ModelInfo, save_model_tensors
from headstart.model.open_set import fit_open_set
from headstart.model.weights import load_weights
from headstart.runtime.accelerator import versions
from support.images import CLASSES


def tensors_of(classes: int = 3) -> dict[str, torch.Tensor]:
    """The bundled backbone and a random head that tells drawn images apart."""
    backbone = load_weights("bundled", RESNET18).tensors
    assert backbone is not None
    generator = torch.Generator().manual_seed(3)
    return backbone | {
        "fc.weight": torch.randn(classes, 512, generator=generator) * 0.3,
        "fc.bias": torch.linspace(-1, 1, classes),
    }


def calibration_of() -> Calibration:
    """Of drawn numbers, so that there is one."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    logits = rng.normal(0, 1, (60, 3)) + 2 * np.eye(3)[labels]
    features = np.abs(rng.normal(0, 1, (60, 512))) + np.repeat(np.eye(3), [171, 171, 170], axis=1)[labels]
    return Calibration(
        temperature=1.7,
        fitted_on="validation logits",
        n=60,
        conformal=fit_conformal(logits, labels, exact=True),
        open_set=fit_open_set(features, labels),
    )


def write_model(folder: Path, *, calibrated: bool = False, measured_on: str = "network", precision: str = "no") -> Path:
    """folder/model.safetensors at 32 px with golden inputs; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    info = ModelInfo(
        measured_on=measured_on,
        classes=CLASSES,
        preprocess=Preprocess(32, 37),
        strategy="frozen_head",
        mixed_precision=precision,
        channels_last=True,
        eval_batch_size=64,
        manifest_sha256="ab" * 32,
        weights="bundled",
        weights_sha256=None,
        seed=0,
        versions=versions(),
        metrics={"val": {"n": 40, "correct": 30, "accuracy": 0.75, "accuracy_ci95": [0.6, 0.86], "loss": 0.5}},
        calibration=calibration_of() if calibrated else None,
    )
    tensors = tensors_of()
    save_model_tensors(folder / "model.safetensors", tensors, replace(info, golden=golden_inputs.record(info, tensors)))
    return folder
