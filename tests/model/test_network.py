"""The network: its start, its agreement with torchvision to the bit, folding, and modules that stay in eval mode."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from headstart import DataConfig, InputError, ModelConfig, RunConfig
from headstart.backbones import BACKBONES, RESNET18
from headstart.model.build import backbone_shapes, build_model, network_of
from headstart.model.fold import fold_batchnorm
from headstart.model.resnet import ResNet
from headstart.model.weights import load_weights

RESNETS = pytest.mark.parametrize(
    "backbone", [BACKBONES[name] for name in ("resnet18", "resnet34", "resnet50")], ids=lambda backbone: backbone.name
)


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_a_zero_head_starts_at_the_loss_of_uniform_probabilities(num_classes: int) -> None:
    model = build_model(RESNET18, num_classes, tensors=None, head_init="zero", seed=0).eval()
    labels = torch.arange(4) % num_classes
    loss = F.cross_entropy(model(torch.randn(4, 3, 32, 32)), labels)
    assert loss.item() == pytest.approx(math.log(num_classes), abs=1e-6)


@RESNETS
def test_plain_torchvision_loads_it_strictly_and_it_loads_plain_torchvision(backbone) -> None:
    theirs = get_model(backbone.name, num_classes=3)
    ours = ResNet(backbone.name, 3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert same_tensors(ours, theirs)
    again = get_model(backbone.name, num_classes=3)
    again.load_state_dict(ours.state_dict(), strict=True)
    assert same_tensors(again, theirs)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


@RESNETS
def test_the_start_is_that_of_torchvision_for_the_same_seed(backbone) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = get_model(backbone.name, num_classes=3)
        theirs.fc.reset_parameters()
    assert same_tensors(build_model(backbone, 3, tensors=None, head_init="normal", seed=5), theirs)


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, torch.contiguous_format),
        (torch.float32, torch.channels_last),
        pytest.param(torch.bfloat16, torch.channels_last, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("training", [True, False])
@RESNETS
def test_logits_gradients_and_statistics_equal_those_of_torchvision(backbone, training: bool, dtype, layout) -> None:
    tensors = load_weights("bundled", RESNET18).tensors if backbone is RESNET18 else None
    ours = build_model(backbone, 3, tensors=tensors, head_init="normal", seed=1).train(training)
    theirs = get_model(backbone.name, num_classes=3).train(training)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    logits, gradients = [], []
    for model in (ours, theirs):
        model.to(memory_format=layout)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits.append(model(pixels))
            F.cross_entropy(logits[-1], torch.tensor([0, 1, 2, 0])).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert torch.equal(*logits)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert same_tensors(ours, theirs)


def test_relu_after_the_maximum_has_the_values_and_gradients_of_relu_before_it() -> None:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(4, 8, 17, 18, generator=generator)
    for pixels in (random, random.round(), -random.abs(), torch.zeros_like(random)):  # ties, all negative, all zero
        found = []
        for reluctant in (True, False):
            x = pixels.clone().requires_grad_()
            pool = nn.MaxPool2d(3, stride=2, padding=1)
            y = pool(x).relu() if reluctant else pool(x.relu())
            (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
            found.append((y.detach(), x.grad))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


def test_initialisation_depends_on_the_seed_only_and_keeps_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    heads = [build_model(RESNET18, 3, tensors=None, head_init="normal", seed=seed).fc.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_modules_kept_in_eval_mode_stay_there_whoever_calls_train() -> None:
    model = build_model(RESNET18, 2, tensors=None, head_init="zero", seed=0)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    model.keep_in_eval(norms)
    model.train()
    nn.Sequential(model).train()
    assert model.training
    assert not any(dict(model.named_modules())[name].training for name in norms)


def random_statistics(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Other BatchNorm statistics than the 0 and 1 of a new network."""
    generator = torch.Generator().manual_seed(4)
    drawn = dict(tensors)
    for name, value in tensors.items():
        if name.endswith(("running_mean", "running_var")):
            low = -0.1 if name.endswith("mean") else 0.7
            drawn[name] = low + 0.5 * torch.rand(value.shape, generator=generator)
    return drawn


@pytest.mark.parametrize("name", BACKBONES)
def test_a_folded_network_has_no_batchnorm_and_gives_the_same_in_float64(name) -> None:
    backbone = BACKBONES[name]
    tensors = random_statistics(build_model(backbone, 3, tensors=None, head_init="normal", seed=1).state_dict())
    before = {name: value.clone() for name, value in tensors.items()}
    plain, folded = (network_of({name: value.double() for name, value in tensors.items()}, backbone) for _ in range(2))
    head = folded.without_head()
    assert fold_batchnorm(folded, torch.float64)
    folded.set_submodule(backbone.head, head)
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(folded(pixels), plain(pixels), rtol=1e-10, atol=1e-10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    network = network_of(tensors, backbone)
    network.without_head()
    assert fold_batchnorm(network, torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())


@pytest.mark.parametrize("name", BACKBONES)
def test_the_table_of_the_backbone_is_true_of_the_network(name) -> None:
    backbone = BACKBONES[name]
    model = build_model(backbone, 3, tensors=None, head_init="zero", seed=0).eval()
    assert model.head_name == backbone.head
    assert model.head_layer.in_features == backbone.features
    model.without_head()
    for side in (backbone.min_image_size, 3 * backbone.min_image_size):
        pixels = torch.rand(1, 3, side, side)
        maps = model.maps(pixels)
        assert maps.shape == (1, backbone.features, side // 32, side // 32)
        torch.testing.assert_close(model.pool_maps(maps), maps.mean(dim=(2, 3)))
        assert torch.equal(model.pool_maps(maps), model(pixels))
    assert backbone_shapes(backbone) == {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_preprocessing_of_the_table_is_that_of_timm(name) -> None:
    backbone = BACKBONES[name]
    theirs = timm.get_pretrained_cfg(backbone.base_model.removeprefix("timm/"))
    assert theirs.input_size == (3, backbone.image_size, backbone.image_size)
    assert (theirs.mean, theirs.std, theirs.interpolation) == (backbone.mean, backbone.std, backbone.interpolation)
    assert theirs.crop_pct == backbone.crop_share
    assert theirs.license == backbone.license


def test_the_configuration_takes_the_smallest_image_of_the_backbone_and_none_below() -> None:
    def config(size: int) -> RunConfig:
        return RunConfig(data=DataConfig(image_size=size), model=ModelConfig(backbone="lite0"))

    assert config(RESNET18.min_image_size).data.image_size == RESNET18.min_image_size
    with pytest.raises(InputError, match="EfficientNet-Lite0"):
        config(RESNET18.min_image_size - 1)
