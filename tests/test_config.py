"""The configuration tree: defaults, ranges, and the arithmetic of batches."""

import dataclasses
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headstart.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    ProbeConfig,
    RunConfig,
    RuntimeConfig,
    StrategyConfig,
    TrainConfig,
    check_divisible,
)
from headstart.errors import InputError

SECTIONS = (DataConfig, ModelConfig, StrategyConfig, ProbeConfig, OptimConfig, TrainConfig, RuntimeConfig)

OUT_OF_RANGE = [
    (RunConfig, "seed", -1),
    (RunConfig, "seed", 2**63),
    (DataConfig, "val_fraction", 0.0),
    (DataConfig, "val_fraction", 1.0),
    (DataConfig, "val_fraction", float("nan")),
    (DataConfig, "image_size", 31),
    (DataConfig, "resize_size", 223),
    (DataConfig, "min_crop_scale", 0.0),
    (DataConfig, "min_crop_scale", 1.01),
    (DataConfig, "num_workers", -1),
    (OptimConfig, "lr", 0.0),
    (OptimConfig, "lr", -0.1),
    (OptimConfig, "lr", float("nan")),
    (OptimConfig, "backbone_lr", 0.0),
    (OptimConfig, "momentum", 1.0),
    (OptimConfig, "momentum", -0.1),
    (OptimConfig, "weight_decay", -1e-9),
    (OptimConfig, "warmup_epochs", -1.0),
    (OptimConfig, "step_epochs", 0.0),
    (OptimConfig, "step_gamma", 0.0),
    (OptimConfig, "step_gamma", 1.1),
    (OptimConfig, "label_smoothing", 1.0),
    (OptimConfig, "label_smoothing", -0.1),
    (OptimConfig, "clip_norm", 0.0),
    (OptimConfig, "logit_adjustment", -1.0),
    (ProbeConfig, "augmented_copies", -1),
    (ProbeConfig, "l2", 0.0),
    (ProbeConfig, "folds", 1),
    (ProbeConfig, "steps", 0),
    (TrainConfig, "epochs", 0),
    (TrainConfig, "batch_size", 0),
    (TrainConfig, "accumulation", 0),
    (TrainConfig, "eval_batch_size", 0),
    (TrainConfig, "checkpoint_steps", -1),
    (RuntimeConfig, "threads", 0),
]

AT_THE_EDGE = [
    (RunConfig, "seed", 0),
    (RunConfig, "seed", 2**63 - 1),
    (DataConfig, "image_size", 32),
    (DataConfig, "resize_size", 224),
    (DataConfig, "min_crop_scale", 1.0),
    (DataConfig, "num_workers", 0),
    (OptimConfig, "momentum", 0.0),
    (OptimConfig, "weight_decay", 0.0),
    (OptimConfig, "step_gamma", 1.0),
    (OptimConfig, "label_smoothing", 0.0),
    (ProbeConfig, "augmented_copies", 0),
    (ProbeConfig, "folds", 2),
    (TrainConfig, "epochs", 1),
    (TrainConfig, "batch_size", 1),
    (RuntimeConfig, "threads", 1),
]


def full_name(kind: type, name: str) -> str:
    return name if kind is RunConfig else f"{kind.__name__.removesuffix('Config').lower()}.{name}"


def whole(kind: type, name: str, value: object) -> RunConfig:
    """The configuration with this value, as some are checked across sections."""
    section = kind.__name__.removesuffix("Config").lower()
    return RunConfig(**{name: value}) if kind is RunConfig else RunConfig(**{section: kind(**{name: value})})


def test_every_default_is_valid() -> None:
    config = RunConfig()
    assert [type(getattr(config, field.name)) for field in dataclasses.fields(config)][2:] == list(SECTIONS)


@pytest.mark.parametrize("kind", [RunConfig, *SECTIONS])
def test_a_configuration_cannot_be_changed(kind: type) -> None:
    config = kind()
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)


@pytest.mark.parametrize(("kind", "name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_key_and_value(kind: type, name: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        whole(kind, name, value)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(rf"(^|\W){re.escape(full_name(kind, name))}\W", message)
    assert str(value) in message


@pytest.mark.parametrize(("kind", "name", "value"), AT_THE_EDGE)
def test_the_edge_of_a_range_is_accepted(kind: type, name: str, value: object) -> None:
    whole(kind, name, value)


@given(batch_size=st.integers(1, 500), accumulation=st.integers(1, 20), num_processes=st.integers(1, 9))
def test_a_batch_is_accepted_if_and_only_if_it_divides_evenly(
    batch_size: int, accumulation: int, num_processes: int
) -> None:
    if batch_size % accumulation:
        with pytest.raises(InputError, match=rf"train.batch_size {batch_size} .* train.accumulation {accumulation}"):
            TrainConfig(batch_size=batch_size, accumulation=accumulation)
        return
    train = TrainConfig(batch_size=batch_size, accumulation=accumulation)
    if batch_size % (accumulation * num_processes):
        with pytest.raises(InputError, match=rf"\b{num_processes}\b"):
            check_divisible(train, num_processes=num_processes)
    else:
        check_divisible(train, num_processes=num_processes)


@given(batch_size=st.integers(1, 500), parts=st.integers(2, 20))
def test_the_nearest_batch_sizes_that_divide_evenly_are_suggested(batch_size: int, parts: int) -> None:
    assume(batch_size % parts)
    with pytest.raises(InputError) as caught:
        check_divisible(TrainConfig(batch_size=batch_size), num_processes=parts)
    below = batch_size - batch_size % parts
    nearest = {value for value in (below, below + parts) if value}
    assert nearest <= {int(text) for text in re.findall(r"\d+", str(caught.value))}
    for value in nearest:
        check_divisible(TrainConfig(batch_size=value), num_processes=parts)
