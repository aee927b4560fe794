"""The network: its start, its agreement with torchvision, and modules that stay in eval mode."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from headstart.model.classifier import build_model
from headstart.model.weights import load_weights


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_a_zero_head_starts_at_the_loss_of_uniform_probabilities(num_classes):
    model = build_model(num_classes, backbone=None, head_init="zero", seed=0).eval()
    labels = torch.arange(4) % num_classes
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), labels)
    assert loss.item() == pytest.approx(math.log(num_classes), abs=1e-6)


def test_logits_equal_torchvisions_for_the_same_weights():
    backbone = load_weights("bundled").tensors
    model = build_model(3, backbone=backbone, head_init="normal", seed=1).eval()
    reference = resnet18(num_classes=3).eval()
    reference.load_state_dict(model.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(pixels), reference(pixels))


def test_initialisation_depends_on_the_seed_only_and_keeps_the_global_random_state():
    before = torch.random.get_rng_state()
    heads = [build_model(3, backbone=None, head_init="normal", seed=seed).fc.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_pinned_modules_stay_in_eval_mode_whoever_calls_train():
    model = build_model(2, backbone=None, head_init="zero", seed=0)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    model.keep_in_eval(norms)
    model.train()
    nn.Sequential(model).train()
    assert model.training
    assert not any(dict(model.named_modules())[name].training for name in norms)
