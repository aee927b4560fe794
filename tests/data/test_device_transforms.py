"""Transforms on the device give the pixels of a worker process. On the CPU here: to the bit."""

from pathlib import Path

import pytest
import torch
from support.runs import small

from headstart.backbones import RESNET18
from headstart.config import DataConfig
from headstart.data.device_transforms import DecodedImages, DeviceTransform, collate_decoded
from headstart.data.loaders import TransformedImages, as_dataset
from headstart.data.manifest import build_manifest
from headstart.data.pixel_cache import NO_CACHE, CacheLimit
from headstart.data.sources.folders import ClassFolders
from headstart.data.transforms import Preprocess, train_transform
from headstart.errors import InputError
from headstart.training.run import run

DATA = DataConfig(image_size=48, min_crop_scale=0.3)


@pytest.mark.parametrize("cache_limit", [NO_CACHE, CacheLimit(10**7)])
def test_transforms_on_the_device_have_the_bits_of_a_worker(cache_limit: CacheLimit, tiny_data: Path) -> None:
    manifest = build_manifest(ClassFolders(str(tiny_data)), DATA, seed=0)
    samples, transform = (
        manifest.of("train"),
        train_transform(DATA, Preprocess.of(DATA, RESNET18), cache_limit=cache_limit),
    )
    rows = as_dataset(samples, manifest.classes)
    worker, device = (kind(rows, manifest.source, transform, seed=5) for kind in (TransformedImages, DecodedImages))
    finish = DeviceTransform(transform, torch.device("cpu"))
    for epoch in (0, 3):
        items = [(index, epoch) for index in range(len(samples))]
        made = finish(collate_decoded([device[item] for item in items]))
        assert made.dtype == torch.uint8
        assert torch.equal(made, torch.stack([worker[item]["pixels"] for item in items]))


@pytest.mark.slow
def test_a_run_that_transforms_on_the_device_has_the_model_of_one_that_does_not(
    tiny_data: Path, tmp_path: Path
) -> None:
    models = []
    for where, num_workers in (("workers", 0), ("device", 2)):
        data = {"augment_on": where, "num_workers": num_workers}
        config = small(tiny_data, tmp_path / where, strategy="frozen_head", train={"epochs": 1}, data=data)
        models.append(run(config) / "model.safetensors")
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_device_without_anything_to_do_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.augment_on device"):
        DataConfig(augment_on="device", min_crop_scale=1.0, hflip=False)
