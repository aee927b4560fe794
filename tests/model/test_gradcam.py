"""Grad-CAM in closed form equals Grad-CAM by a backward pass."""

import torch

from headstart.backbones import RESNET18
from headstart.model.build import build_model
from headstart.model.gradcam import heat


def test_the_closed_form_equals_a_backward_pass() -> None:
    model = build_model(RESNET18, 3, tensors=None, head_init="random", seed=1).eval()
    pixels = torch.randn(4, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    kept: list[torch.Tensor] = []
    hook = model.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(pixels)
    hook.remove()
    (maps,) = kept
    classes = torch.tensor([0, 1, 2, 1])
    (gradient,) = torch.autograd.grad(logits[torch.arange(4), classes].sum(), maps)
    by_definition = (gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()
    by_definition = by_definition / by_definition.amax(dim=(1, 2), keepdim=True)
    ours = heat(maps.detach(), model.fc.weight.detach()[classes])
    assert ours.shape == (4, 3, 2)
    assert (by_definition.amax(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(ours, by_definition, rtol=1e-5, atol=1e-6)


def test_the_map_is_zero_where_every_weight_is_negative() -> None:
    found = heat(torch.ones(1, 512, 2, 2), -torch.ones(1, 512))
    assert torch.equal(found, torch.zeros(1, 2, 2))
