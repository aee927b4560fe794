"""Feature banks of drawn images."""

from pathlib import Path

import numpy as np
import torch

from headstart.backbones import RESNET18
from headstart.config import DataConfig, RuntimeConfig
from headstart.data.manifest import build_manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data.transforms import Preprocess
from headstart.features.bank import Bank, bank_key
from headstart.features.extraction import Extraction, bank_transforms, features_of, fill, rows_of
from headstart.model.forward import FrozenNetwork
from headstart.runtime.accelerator import start_accelerator
from headstart.runtime.signals import StopRequest

CPU = torch.device("cpu")
SPEC = Preprocess(image_size=32, resize_size=37)


def extract(
    folder: Path,
    location: Path,
    trunk: dict[str, torch.Tensor] | FrozenNetwork,
    *,
    spec: Preprocess = SPEC,
    augmented_copies: int = 0,
    num_workers: int = 0,
) -> tuple[Extraction, np.ndarray, Bank]:
    """Both splits of an image folder into the bank at `location`, and their features.

    trunk: the tensors of the backbone, or a network that computes the features (a test may count its batches)."""
    network = trunk if isinstance(trunk, FrozenNetwork) else FrozenNetwork(trunk, RESNET18, precision="no", device=CPU)
    manifest = build_manifest(ClassFolders(str(folder)), DataConfig(), seed=0)
    key = bank_key(weights_sha256="bundled", form="test", preprocess=spec.to_json())
    bank = Bank(location, key, width=RESNET18.features)
    transforms = bank_transforms(
        DataConfig(image_size=32, min_crop_scale=0.5), spec, augmented_copies=augmented_copies, seed=0
    )
    rows = rows_of(manifest.source, manifest.samples, transforms)
    with StopRequest() as stop:
        extraction = fill(
            start_accelerator(RuntimeConfig(mixed_precision="no", cpu=True)),
            bank,
            rows,
            spec,
            lambda: network,
            num_workers=num_workers,
            stop=stop,
        )
    return extraction, features_of(bank, rows)[:], bank
