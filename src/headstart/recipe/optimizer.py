"""Which parameters train, and at which learning rate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headstart.config import OptimConfig, StrategyConfig
from headstart.model.network import Network
from headstart.recipe.schedule import lr_factor

# by strategy, the parts of the network that train
TRAINED: Mapping[str, tuple[str, ...]] = {
    "fine_tune": ("head", "backbone"),
    "frozen_head": ("head",),
    "probe_then_tune": ("head", "backbone"),
}

_BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Plan:
    """groups: for the optimizer, each with "name", "params", "lr", "weight_decay", and no frozen parameter.
    eval_modules: names of the modules that stay in eval mode while the model trains."""

    groups: list[dict[str, Any]]
    eval_modules: frozenset[str]


def plan(model: Network, strategy: StrategyConfig, optim: OptimConfig) -> Plan:
    """Set `requires_grad` as the strategy wants it and return the parameter groups for the optimizer."""
    trained = TRAINED[strategy.name]
    rates = {"head": optim.lr, "backbone": optim.backbone_lr if optim.backbone_lr is not None else optim.lr}
    exempt: set[str] = getattr(model, "no_weight_decay", set)()  # tokens and positions of timm's transformers
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part = _part(model, name)
        parameter.requires_grad_(part in trained)
        if part in trained:
            decays = parameter.ndim > 1 and name not in exempt  # biases and the scales of norms are vectors
            members.setdefault((part, decays), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "name": f"{part}_{'decay' if decays else 'no_decay'}",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in members.items()
    ]
    return Plan(groups, _modules_in_eval(model, trained, freeze_batchnorm=strategy.batchnorm == "freeze"))


def _part(model: Network, name: str) -> str:
    return "head" if f"{name}.".startswith(f"{model.head_name}.") else "backbone"


def _modules_in_eval(model: Network, trained: tuple[str, ...], *, freeze_batchnorm: bool) -> frozenset[str]:
    """Frozen leaf modules, whose dropout and BatchNorm must be inactive, and with freeze_batchnorm every BatchNorm."""
    names = set()
    for name, module in model.named_modules():
        is_batchnorm = isinstance(module, _BATCHNORM)
        if not name or (any(module.children()) and not is_batchnorm):
            continue
        if _part(model, name) not in trained or (freeze_batchnorm and is_batchnorm):
            names.add(name)
    return frozenset(names)


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    match optim.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
        case "adamw":
            return torch.optim.AdamW(groups, lr=optim.lr, eps=optim.eps, fused=True)  # one pass over the parameters


def lr_schedule(optim: OptimConfig, *, total_steps: int, steps_per_epoch: float) -> Callable[[int], float]:
    """The configured schedule as a function of the number of optimizer steps done; see `lr_factor`. The warm-up takes
    at most half of the run."""
    warmup_steps = min(round(optim.warmup_epochs * steps_per_epoch), total_steps // 2)
    return lambda step: lr_factor(
        step,
        kind=optim.schedule,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        step_size=optim.step_epochs * steps_per_epoch,
        gamma=optim.step_gamma,
    )
