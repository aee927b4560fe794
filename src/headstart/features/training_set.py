"""The features of a run's images: read from the bank, or computed and stored there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from headstart.config import RunConfig
from headstart.data.samples import Manifest
from headstart.data.transforms import Preprocess
from headstart.features.bank import Bank, BankRows, bank_key, default_location
from headstart.features.extraction import BankTransform, Extraction, features_of, fill, rows_of
from headstart.files import check_outside
from headstart.messages import ProgressStyle, info
from headstart.model.backbones import find_backbone
from headstart.model.forward import FrozenNetwork, bank_form
from headstart.model.weights import Weights
from headstart.runtime.signals import StopRequest


@dataclass(frozen=True)
class BankFeatures:
    """Features of both splits, for n training images and t transforms of each.

    train: (n * t, d), all transforms of the first image, then of the second, and so on; train_labels: (n * t,) int;
    owners: (n * t,), the content hash of each row's image; plain: (n * t,) bool, rows with the evaluation transform;
    val: (m, d); val_labels: (m,) int; form: of the trunk; folder: of the bank."""

    train: BankRows
    train_labels: np.ndarray
    owners: list[str]
    plain: np.ndarray
    val: BankRows
    val_labels: np.ndarray
    extraction: Extraction
    form: str
    folder: Path


def open_bank(accelerator: Accelerator, config: RunConfig, weights: Weights, spec: Preprocess) -> Bank:
    """The bank of this trunk and preprocessing. Prints which of its files are damaged."""
    _, weights_key = backbone_of(config, weights)
    backbone = find_backbone(config.model.backbone)
    form = bank_form(backbone, precision=config.runtime.mixed_precision, device=accelerator.device)
    key = bank_key(weights_sha256=weights_key, form=form, preprocess=spec.to_json())
    if config.runtime.bank:
        check_outside(config.runtime.bank, config.data.root, option="runtime.bank")
    location = Path(config.runtime.bank) if config.runtime.bank else default_location()
    bank = Bank(location, key, width=backbone.features)
    for damaged in bank.damaged:
        info(accelerator, f"{damaged.path} is damaged ({damaged.reason}); its features are computed again")
    return bank


def trunk_of(accelerator: Accelerator, config: RunConfig, weights: Weights) -> Callable[[], FrozenNetwork]:
    """A function that builds the frozen trunk, for when it is needed."""
    return lambda: FrozenNetwork(
        backbone_of(config, weights)[0],
        find_backbone(config.model.backbone),
        precision=config.runtime.mixed_precision,
        device=accelerator.device,
    )


def bank_features(
    accelerator: Accelerator,
    config: RunConfig,
    bank: Bank,
    transforms: Sequence[BankTransform],
    manifest: Manifest,
    weights: Weights,
    spec: Preprocess,
    *,
    stop: StopRequest,
    progress: ProgressStyle = "auto",
) -> BankFeatures:
    """The features of all images. Missing ones are computed and stored first, by all processes."""
    train_samples, val_samples = manifest.of("train"), manifest.of("val")
    train_rows = rows_of(manifest.source, train_samples, transforms)
    val_rows = rows_of(manifest.source, val_samples, transforms[:1])
    extraction = fill(
        accelerator,
        bank,
        train_rows + val_rows,
        spec,
        trunk_of(accelerator, config, weights),
        num_workers=config.data.num_workers,
        stop=stop,
        progress=progress,
    )
    info(accelerator, describe_extraction(extraction, bank))
    return BankFeatures(
        train=features_of(bank, train_rows),
        train_labels=np.repeat(train_samples.codes(manifest.classes), len(transforms)),
        owners=[sha256 for sha256 in train_samples.column("sha256") for _ in transforms],
        plain=np.tile(np.arange(len(transforms)) == 0, len(train_samples)),
        val=features_of(bank, val_rows),
        val_labels=val_samples.codes(manifest.classes),
        extraction=extraction,
        form=bank_form(
            find_backbone(config.model.backbone),
            precision=config.runtime.mixed_precision,
            device=accelerator.device,
        ),
        folder=bank.path,
    )


def backbone_of(config: RunConfig, weights: Weights) -> tuple[dict[str, torch.Tensor], str]:
    """The frozen tensors, and the text that identifies them in the key of the bank."""
    if weights.tensors is not None:
        assert weights.sha256 is not None
        return weights.tensors, weights.sha256
    from headstart.model.build import build_model

    model = build_model(find_backbone(config.model.backbone), 2, tensors=None, head_init="zero", seed=config.seed)
    model.without_head()
    return model.state_dict(), f"random, seed {config.seed}"


def describe_extraction(extraction: Extraction, bank: Bank) -> str:
    """The line about it for the terminal."""
    line = f"features: {extraction.wanted - extraction.computed} from the bank {bank.path}"
    if extraction.computed:
        rate = extraction.computed / extraction.seconds
        line += f", {extraction.computed} computed in {extraction.seconds:.1f} s, {rate:.0f} img/s"
    return line
