"""How many decoding processes: by measuring, without touching the model."""

import pytest
import torch
from accelerate import Accelerator

from headstart.backbones import RESNET18
from headstart.config import DataConfig
from headstart.data.loaders import TransformedImages, as_dataset
from headstart.data.manifest import build_manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data.transforms import Preprocess, train_transform
from headstart.model.build import build_model
from headstart.training.num_workers import (
    images_per_second,
    images_prepared_per_second,
    measure_num_workers,
    num_workers,
)


@pytest.mark.parametrize(
    ("made", "used", "cores", "expected"), [(500, 100, 8, 1), (500, 1600, 8, 4), (500, 9000, 8, 8), (500, 400, 1, 1)]
)
def test_as_many_as_keep_up_and_no_more_than_cores(made: float, used: float, cores: int, expected: int) -> None:
    assert num_workers(made, used, cores=cores) == expected


def test_measuring_changes_nothing(tiny_data) -> None:
    data = DataConfig(root=str(tiny_data), image_size=32)
    manifest = build_manifest(ClassFolders(str(tiny_data)), data, seed=0)
    samples, spec = manifest.of("train"), Preprocess.of(data, RESNET18)
    rows = as_dataset(samples, manifest.classes)
    images = TransformedImages(rows, manifest.source, train_transform(data, spec), seed=0)
    model = build_model(RESNET18, 3, tensors=None, head_init="zero", seed=0).to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accelerator = Accelerator(cpu=True)
    state = torch.random.get_rng_state()
    assert images_prepared_per_second(images) > 0
    assert images_per_second(accelerator, model, spec, share=4) > 0
    assert measure_num_workers(accelerator, model, images, spec, share=4)[0] == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
