"""Keys without effect are named, those with one are not."""

import pytest

from headstart.cli.train import parse_train
from headstart.config import RunConfig
from headstart.config_io import shipped_configs
from headstart.training.unused_keys import describe_unused_keys, unused_keys

FROZEN = ["--strategy.name", "frozen_head"]


def idle(*options: str) -> list[str]:
    return unused_keys(parse_train(["--data.root", "images", *options]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--probe.steps 7", ["probe.steps"]),
        ("--probe.folds 3", []),
        ("--probe.folds 3 --probe.l2 1", ["probe.folds"]),
        ("--train.epochs 99 --data.vflip true", ["data.vflip", "train.epochs"]),
        ("--data.vflip true --probe.augmented_copies 2", []),
        ("--runtime.compile true", ["runtime.compile"]),
        ("--optim.class_weights balanced --optim.label_smoothing 0.1", ["optim.label_smoothing"]),
        ("--probe.solver full_batch --probe.steps 7 --optim.lr 0.5 --model.head_init normal", []),
        (
            "--probe.solver full_batch --optim.clip_norm 1 --optim.schedule step --optim.warmup_epochs 2 "
            "--train.epochs 9 --train.batch_size 16",
            ["optim.clip_norm", "optim.schedule", "optim.warmup_epochs", "train.batch_size", "train.epochs"],
        ),
        ("--probe.solver full_batch --optim.schedule constant", []),
        ("--probe.solver sgd --optim.clip_norm 1 --optim.schedule step --train.epochs 9 --train.batch_size 16", []),
        (
            "--probe.solver sgd --probe.l2 1 --probe.steps 7 --runtime.compile true",
            ["probe.l2", "probe.steps", "runtime.compile"],
        ),
    ],
)
def test_on_the_feature_bank_each_solver_has_keys_of_its_own(options: str, named: list[str]) -> None:
    assert idle(*FROZEN, *options.split()) == named


def test_the_loop_does_not_look_at_the_section_probe() -> None:
    options = [
        "--probe.augmented_copies",
        "2",
        "--probe.l2",
        "1",
        "--runtime.compile",
        "true",
        "--optim.clip_norm",
        "1",
    ]
    assert idle("--strategy.name", "fine_tune", *options) == ["probe.augmented_copies", "probe.l2"]
    assert idle(*FROZEN, "--strategy.features", "recompute", *options) == ["probe.augmented_copies", "probe.l2"]
    assert idle("--strategy.name", "probe_then_tune", *options) == []
    assert idle("--strategy.name", "probe_then_tune", "--probe.steps", "7") == ["probe.steps"]


def test_the_message_names_the_kind_of_run_and_the_way_out() -> None:
    message = describe_unused_keys(parse_train([*FROZEN, "--data.root", "images", "--probe.steps", "7"]))
    assert message is not None
    for fragment in ("lbfgs", "probe.steps", "--strategy.features recompute"):
        assert fragment in message
    message = describe_unused_keys(parse_train(["images", "--config", "fine_tune", "--probe.steps", "7"]))
    assert message is not None
    assert message.endswith("probe.steps")
    assert "fine_tune" in message
    assert describe_unused_keys(RunConfig()) is None


@pytest.mark.slow
def test_the_shipped_configurations_set_nothing_unused_keys() -> None:
    configs = shipped_configs()
    assert len(configs) >= 10
    named = {name: idle("--config", str(path)) for name, path in configs.items() if name != "demo"}
    named["demo"] = idle("--config", "fine_tune", "--config", "demo")  # it is put on top of another one
    assert [name for name, keys in named.items() if keys] == []
