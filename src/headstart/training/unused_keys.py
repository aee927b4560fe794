"""Keys that are set and that the run does not use. They are reported, so that no setting is ignored silently."""

from dataclasses import asdict

from headstart.config import ProbeConfig, RunConfig

_OF_EPOCHS = {"train.accumulation", "train.checkpoint_steps", "train.checkpoint_minutes"}
_LOOKED_AT_BY_EVERY_SOLVER = {"optim.class_weights", "optim.logit_adjustment"}


def describe_unused_keys(config: RunConfig) -> str | None:
    """One sentence on the keys without effect, or None if there are none."""
    keys = unused_keys(config)
    if not keys:
        return None
    sentence = f"no effect on {_what(config)}: {', '.join(keys)}"
    return f"{sentence} (they apply with --strategy.features recompute)" if config.trains_on_features else sentence


def unused_keys(config: RunConfig) -> list[str]:
    """Keys, as section.key, that differ from their defaults and on which nothing in this run depends."""
    now, default = asdict(config), asdict(RunConfig())
    idle = _of_probe(config) | _of_optim(config)
    if config.trains_on_features:
        idle |= _of_bank(config, set(now["optim"]))
    parts = [key.split(".") for key in sorted(idle)]
    return [f"{section}.{key}" for section, key in parts if now[section][key] != default[section][key]]


def _what(config: RunConfig) -> str:
    if config.trains_on_features:
        return f"the {config.probe.solver} head on cached features"
    return config.strategy.name if config.uses_bank else f"{config.strategy.name} without the feature bank"


def _of_optim(config: RunConfig) -> set[str]:
    """Of the optimizers and schedules that are not chosen."""
    idle = {"optim.momentum"} if config.optim.name == "adamw" else {"optim.eps"}
    return idle if config.optim.schedule == "step" else idle | {"optim.step_epochs", "optim.step_gamma"}


def _of_probe(config: RunConfig) -> set[str]:
    """Of the section probe."""
    if not config.uses_bank:
        return {f"probe.{key}" for key in asdict(ProbeConfig())} | {"runtime.bank"}
    match config.probe.solver:
        case "lbfgs":
            return {"probe.steps"} | (set() if config.probe.l2 is None else {"probe.folds"})
        case "sgd":
            return {"probe.steps", "probe.l2", "probe.folds"}
        case "full_batch":
            return {"probe.l2", "probe.folds"}


def _of_bank(config: RunConfig, optim: set[str]) -> set[str]:
    """Of the other sections, where only a head is trained, on cached features. optim: the keys of that section."""
    idle = {
        "strategy.batchnorm",
        "runtime.compile",
        "data.augment_on",
        "data.shuffle_images",
        "optim.backbone_lr",
        *_OF_EPOCHS,
    }
    if not config.probe.augmented_copies:
        idle |= {"data.min_crop_scale", "data.hflip", "data.vflip"}
    match config.probe.solver:
        case "lbfgs":
            idle |= {"model.head_init", "train.epochs", "train.batch_size"}
            idle |= {f"optim.{key}" for key in optim} - _LOOKED_AT_BY_EVERY_SOLVER
        case "full_batch":
            idle |= {"train.epochs", "train.batch_size", "optim.warmup_epochs", "optim.step_epochs", "optim.step_gamma"}
            idle |= {"optim.clip_norm"} | (set() if config.optim.schedule == "constant" else {"optim.schedule"})
        case "sgd":
            pass  # uses the same keys as training on images
    return idle
