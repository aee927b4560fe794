import pytest
import torch
from torch import nn

from headstart.backbones import RESNET18
from headstart.config import OptimConfig, StrategyConfig
from headstart.model.build import build_model
from headstart.recipe import optimizer as recipe


@pytest.fixture
def model():
    return build_model(RESNET18, 3, tensors=None, head_init="zero", seed=0)


def of(model, name, **optim):
    return recipe.plan(model, StrategyConfig(name=name), OptimConfig(**optim))


@pytest.mark.parametrize("name", sorted(recipe.TRAINED))
def test_each_training_parameter_is_in_exactly_one_group(model, name):
    groups = of(model, name).groups
    members = [id(parameter) for group in groups for parameter in group["params"]]
    training = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert training
    assert sorted(members) == sorted(training)


def test_the_frozen_head_trains_the_head_alone(model):
    of(model, "frozen_head")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_fine_tune_trains_everything(model):
    of(model, "fine_tune")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_head_and_backbone_have_their_own_learning_rates(model):
    rates = {group["name"]: group["lr"] for group in of(model, "fine_tune", lr=0.1, backbone_lr=0.01).groups}
    assert rates == {"backbone_decay": 0.01, "backbone_no_decay": 0.01, "head_decay": 0.1, "head_no_decay": 0.1}


def test_without_a_backbone_rate_the_backbone_has_the_heads(model):
    assert {group["lr"] for group in of(model, "fine_tune", lr=0.1, backbone_lr=None).groups} == {0.1}


def test_norms_and_biases_have_no_weight_decay(model):
    groups = of(model, "fine_tune", weight_decay=0.05).groups
    spared = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    expected = set()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            expected |= {id(module.weight), id(module.bias)}
        elif isinstance(module, nn.Linear):
            expected.add(id(module.bias))
    assert spared == expected
    assert all(group["weight_decay"] in (0, 0.05) for group in groups)


def test_batchnorm_statistics_stay_in_fine_tune_if_so_asked(model):
    plan = recipe.plan(model, StrategyConfig(name="fine_tune", batchnorm="freeze"), OptimConfig())
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert plan.eval_modules == norms
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adamw_on_our_groups_is_the_textbook_update(model):
    optim = OptimConfig(name="adamw", lr=0.01, weight_decay=0.1)
    plan = recipe.plan(model, StrategyConfig(name="frozen_head"), optim)
    optimizer = recipe.build_optimizer(plan.groups, optim)
    weight, bias = model.fc.weight.detach().clone(), model.fc.bias.detach().clone()
    moments = {"weight": [0, 0], "bias": [0, 0]}
    for step in (1, 2):
        grads = {"weight": torch.full_like(weight, 0.3 * step), "bias": torch.full_like(bias, -0.2)}
        model.fc.weight.grad, model.fc.bias.grad = grads["weight"].clone(), grads["bias"].clone()
        optimizer.step()
        for name, value, decay in (("weight", weight, 0.1), ("bias", bias, 0.0)):
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * grads[name], 0.999 * v + 0.001 * grads[name] ** 2
            moments[name] = [m, v]
            value.mul_(1 - 0.01 * decay)
            value.sub_(0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + optim.eps))
    torch.testing.assert_close(model.fc.weight.detach(), weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.fc.bias.detach(), bias, rtol=1e-6, atol=1e-7)
