"""Keys that are set and that the run does not use. They are reported, so that no setting is ignored silently."""

from dataclasses import asdict

from headstart.config import RunConfig, flat


def describe_unused_keys(config: RunConfig) -> str | None:
    """One sentence on the keys without effect, or None if there are none."""
    keys = unused_keys(config)
    if not keys:
        return None
    if config.trains_on_features:
        return (
            f"no effect on the {config.probe.solver} head on cached features: {', '.join(keys)} (they apply with "
            "--strategy.features recompute)"
        )
    what = config.strategy.name if config.uses_bank else f"{config.strategy.name} without the feature bank"
    return f"no effect on {what}: {', '.join(keys)}"


def unused_keys(config: RunConfig) -> list[str]:
    """Keys, as section.key, that differ from their defaults and on which nothing in this run depends."""
    now, default = flat(asdict(config)), flat(asdict(RunConfig()))
    optim, probe = ({key for key in now if key.startswith(section)} for section in ("optim.", "probe."))
    idle = {"optim.momentum"} if config.optim.name == "adamw" else {"optim.eps"}
    if config.optim.schedule != "step":
        idle |= {"optim.step_epochs", "optim.step_gamma"}
    if not config.uses_bank:
        idle |= probe | {"runtime.bank"}
    elif config.probe.solver == "lbfgs":
        idle |= {"probe.steps"} | (set() if config.probe.l2 is None else {"probe.folds"})
    else:
        idle |= {"probe.l2", "probe.folds"} | ({"probe.steps"} if config.probe.solver == "sgd" else set())
    if config.trains_on_features:
        idle |= {"strategy.batchnorm", "runtime.compile", "data.augment_on", "data.shuffle_images", "optim.backbone_lr"}
        idle |= {"train.accumulation", "train.checkpoint_steps", "train.checkpoint_minutes"}
        if not config.probe.augmented_copies:
            idle |= {"data.min_crop_scale", "data.hflip", "data.vflip"}
        if config.probe.solver != "sgd":  # which uses the same keys as training on images
            idle |= {"train.epochs", "train.batch_size"}
        if config.probe.solver == "lbfgs":
            idle |= {"model.head_init"} | (optim - {"optim.class_weights", "optim.logit_adjustment"})
        if config.probe.solver == "full_batch":
            idle |= {"optim.warmup_epochs", "optim.step_epochs", "optim.step_gamma", "optim.clip_norm"}
            idle |= set() if config.optim.schedule == "constant" else {"optim.schedule"}
    return [key for key in sorted(idle) if now[key] != default[key]]
