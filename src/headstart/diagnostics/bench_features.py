"""`headstart bench features`: speed of feature extraction, and of the same network on images in memory."""

import math
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.backbones import Backbone
from headstart.config import DataConfig, ModelConfig, RunConfig, RuntimeConfig
from headstart.data.manifest import build_manifest
from headstart.data.pixel_cache import cache_limit_for
from headstart.data.samples import Manifest
from headstart.data.sources.open import open_source
from headstart.data.transforms import PixelCache, Preprocess
from headstart.features import logistic_regression
from headstart.features.bank import Bank, bank_key
from headstart.features.cross_validation import cross_validate, stratified_folds
from headstart.features.extraction import (
    BATCH_CPU,
    BATCH_GPU,
    BankTransform,
    bank_transforms,
    features_of,
    fill,
    rows_of,
)
from headstart.features.training_set import backbone_of
from headstart.model.backbones import find_backbone
from headstart.model.forward import FrozenNetwork
from headstart.model.weights import obtain_weights
from headstart.runtime.accelerator import set_threads, start_accelerator
from headstart.runtime.hardware import usable_cores
from headstart.runtime.precision import choose_precision, describe_precision
from headstart.runtime.signals import StopRequest
from headstart.wording import plural

ROUND_S = 3.0  # of each in-memory measurement


def bench_features(
    data: str, *, backbone: str, weights_source: str, precision: str, rounds: int, image_size: int | None = None
) -> None:
    """Print the rates of each round, and the effect of the precision on features and probe."""
    set_threads(None)
    accelerator = start_accelerator(RuntimeConfig(mixed_precision=precision))  # type: ignore[arg-type]
    network = find_backbone(backbone)
    config = RunConfig(model=ModelConfig(backbone=backbone, weights=weights_source))
    tensors, _ = backbone_of(config, obtain_weights(accelerator, weights_source, network))
    chosen, reason = choose_precision(precision, accelerator.device)
    spec = Preprocess.of(DataConfig(image_size=image_size), network)
    manifest, _, _ = _check(data, spec)
    trunk = FrozenNetwork(tensors, network, precision=chosen, device=accelerator.device)
    cores = usable_cores()
    print(
        f"{plural(len(manifest.samples), 'image')}, {describe_precision(chosen, reason)} on {accelerator.device.type}, "
        f"{plural(cores, 'core')}"
    )
    shares, rereading = [], []
    for number in range(1, rounds + 1):
        in_memory = {f"{cores} threads": _in_memory(trunk, spec)}
        if accelerator.device.type == "cpu":
            in_memory[f"{cores} processes of 1 thread"] = _in_processes(trunk, spec, cores)
        manifest, transforms, check = _check(data, spec)
        extraction, _ = _extract(accelerator, manifest, trunk, spec, transforms)
        again, _ = _extract(
            accelerator, manifest, trunk, spec, bank_transforms(DataConfig(), spec, augmented_copies=0, seed=0)
        )
        fastest = max(in_memory.values())
        shares.append(extraction / fastest)
        rereading.append(again / fastest)
        ways = ", ".join(f"{name} {value:.0f}" for name, value in in_memory.items())
        print(
            f"round {number}: check {check:.0f} img/s, extraction {extraction:.0f}, decoding again {again:.0f}, "
            f"network in memory {ways}; "
            f"share {shares[-1]:.1%}, decoding again {rereading[-1]:.1%}",
            flush=True,
        )
    medians = f"{np.median(shares):.1%}, decoding again {np.median(rereading):.1%}"
    print(f"share of the fastest in-memory rate, medians: {medians}")
    if chosen != "no":
        _compare_forms(accelerator, manifest, trunk.backbone, tensors, spec, chosen)


def _in_memory(trunk: FrozenNetwork, spec: Preprocess) -> float:
    size = BATCH_CPU if trunk.device.type == "cpu" else BATCH_GPU
    side = spec.image_size
    pixels = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, device=trunk.device)
    trunk(spec.normalize(pixels))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < ROUND_S:
        features = trunk(spec.normalize(pixels))
        count += size
    features.cpu()  # waits for a GPU
    return count / (time.perf_counter() - started)


def _in_processes(trunk: FrozenNetwork, spec: Preprocess, cores: int) -> float:
    with ProcessPoolExecutor(cores, mp_context=get_context("fork")) as pool:
        return sum(pool.map(_one_thread, [(trunk, spec)] * cores))


def _one_thread(work: tuple[FrozenNetwork, Preprocess]) -> float:
    torch.set_num_threads(1)
    return _in_memory(*work)


def _check(data: str, spec: Preprocess) -> tuple[Manifest, list[BankTransform], float]:
    """The manifest, transforms that cache the images decoded for it, and images per second."""
    config = DataConfig(root=data, on_bad_file="skip", rescan=True)
    transforms = bank_transforms(config, spec, augmented_copies=0, seed=0, cache_limit=cache_limit_for(config))
    started = time.perf_counter()
    manifest = build_manifest(
        open_source(config),
        config,
        seed=0,
        cache=PixelCache(train=[transforms[0].transform], val=[transforms[0].transform]),
    )
    return manifest, transforms, len(manifest.samples) / (time.perf_counter() - started)


def _extract(
    accelerator: Any, manifest: Manifest, trunk: FrozenNetwork, spec: Preprocess, transforms: Sequence[BankTransform]
) -> tuple[float, np.ndarray]:
    rows = rows_of(manifest.source, manifest.samples, transforms)
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder, StopRequest() as stop:
        key = bank_key(weights_sha256="bench", form="bench", preprocess=spec.to_json())
        bank = Bank(Path(folder), key, width=trunk.backbone.features)
        done = fill(accelerator, bank, rows, spec, lambda: trunk, num_workers=None, stop=stop, progress="silent")
        return done.computed / done.seconds, features_of(bank, rows)[:]


def _compare_forms(
    accelerator: Any,
    manifest: Manifest,
    backbone: Backbone,
    tensors: dict[str, torch.Tensor],
    spec: Preprocess,
    precision: str,
) -> None:
    """Print the cosine of each image's features to those in fp32, and the accuracy of a probe on both."""
    forms = {}
    for name in ("no", precision):
        trunk = FrozenNetwork(tensors, backbone, precision=name, device=accelerator.device)
        transforms = bank_transforms(DataConfig(), spec, augmented_copies=0, seed=0)
        _, forms[name] = _extract(accelerator, manifest, trunk, spec, transforms)
    exact, rounded = forms["no"].astype(np.float64), forms[precision].astype(np.float64)
    cosines = (exact * rounded).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    labels = manifest.samples.codes(manifest.classes)
    train = np.array([sample.split == "train" for sample in manifest.samples])
    ids = [sample.sha256 for sample in manifest.samples if sample.split == "train"]
    folds = stratified_folds(ids, labels[train], folds=5, seed=0)
    correct = {}
    for name, features in forms.items():
        l2 = cross_validate(features[train], labels[train], folds, num_classes=len(manifest.classes)).l2
        head = logistic_regression.fit(features[train], labels[train], num_classes=len(manifest.classes), l2=l2).head
        correct[name] = int((head.logits(features[~train]).argmax(axis=1) == labels[~train]).sum())
    degrees = math.degrees(math.acos(min(1.0, float(cosines.min()))))
    print(
        f"{precision} and fp32: cosine of the features at least {cosines.min():.6f} ({degrees:.2f} degrees), mean "
        f"{cosines.mean():.6f}; probe correct on {correct[precision]} and {correct['no']} of {int((~train).sum())}"
    )
