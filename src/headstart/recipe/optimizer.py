"""Which parameters train, and at which learning rate. A strategy is a table of rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headstart.config import OptimConfig, StrategyConfig
from headstart.errors import InputError
from headstart.recipe.schedule import lr_factor


@dataclass(frozen=True)
class Rule:
    """Parameters whose name starts with `prefix` form the part `part`; it trains or is frozen."""

    prefix: str
    part: str
    trains: bool


# the first rule that matches the name of a parameter applies
RULES: Mapping[str, tuple[Rule, ...]] = {
    "fine_tune": (Rule("fc.", "head", True), Rule("", "backbone", True)),
    "frozen_head": (Rule("fc.", "head", True), Rule("", "backbone", False)),
    "probe_then_tune": (Rule("fc.", "head", True), Rule("", "backbone", True)),
}

_BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Plan:
    """groups: for the optimizer, each with "name", "params", "lr", "weight_decay", and no frozen parameter.
    eval_modules: names of the modules that stay in eval mode while the model trains."""

    groups: list[dict[str, Any]]
    eval_modules: frozenset[str]


def plan(model: nn.Module, strategy: StrategyConfig, optim: OptimConfig) -> Plan:
    """Set `requires_grad` by the rules of the strategy and return the parameter groups for the optimizer.

    Raises ValueError if a rule matches no parameter, or no rule a parameter.
    """
    rules = RULES[strategy.name]
    rates = {"head": optim.lr, "backbone": optim.backbone_lr if optim.backbone_lr is not None else optim.lr}
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    used = set()
    for name, parameter in model.named_parameters():
        rule = next((rule for rule in rules if name.startswith(rule.prefix)), None)
        if rule is None:
            raise ValueError(f"no rule of strategy {strategy.name} covers parameter {name}")
        used.add(rule)
        parameter.requires_grad_(rule.trains)
        if rule.trains:
            decays = parameter.ndim > 1  # biases and the scales of norms are vectors
            members.setdefault((rule.part, decays), []).append(parameter)
    idle = [rule for rule in rules if rule not in used]
    if idle:
        raise ValueError(f"rule {idle[0]} of strategy {strategy.name} matches no parameter")
    groups: list[dict[str, Any]] = [
        {
            "name": f"{part}_{'decay' if decays else 'no_decay'}",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in members.items()
    ]
    return Plan(groups, _modules_in_eval(model, rules, freeze_batchnorm=strategy.batchnorm == "freeze"))


def _modules_in_eval(model: nn.Module, rules: tuple[Rule, ...], *, freeze_batchnorm: bool) -> frozenset[str]:
    """Frozen leaf modules, whose dropout and BatchNorm must be inactive, and with freeze_batchnorm every BatchNorm."""
    names = set()
    for name, module in model.named_modules():
        if name and not any(module.children()):
            rule = next(rule for rule in rules if f"{name}.".startswith(rule.prefix))
            if not rule.trains or (freeze_batchnorm and isinstance(module, _BATCHNORM)):
                names.add(name)
    return frozenset(names)


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    match optim.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
        case "adamw":
            return torch.optim.AdamW(groups, lr=optim.lr, eps=optim.eps, fused=True)  # one pass over the parameters


def lr_schedule(optim: OptimConfig, *, total_steps: int, steps_per_epoch: float) -> Callable[[int], float]:
    """The configured schedule as a function of the number of optimizer steps done; see `lr_factor`.

    Raises InputError if the warm-up takes the whole run."""
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise InputError(
            f"optim.warmup_epochs {optim.warmup_epochs} is {warmup_steps} steps and the whole run has {total_steps}; "
            "make it shorter or train longer"
        )
    return lambda step: lr_factor(
        step,
        kind=optim.schedule,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        step_size=optim.step_epochs * steps_per_epoch,
        gamma=optim.step_gamma,
    )
