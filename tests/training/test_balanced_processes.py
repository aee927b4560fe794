"""What makes up for rare classes computes the same on two processes and under accumulation."""

import shutil

import pytest
from support.processes import torchrun
from support.runs import losses, small, summary

from headstart.config_io import to_yaml
from headstart.training.run import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def rare_checks(tiny_data, tmp_path_factory):
    """3 training images of red_checks, 12 of each other class."""
    root = tmp_path_factory.mktemp("rare") / "data"
    shutil.copytree(tiny_data, root)
    for path in sorted((root / "train" / "red_checks").iterdir())[3:]:
        path.unlink()
    return root


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"sampling": "balanced"}},
        {"optim": {"class_weights": "balanced"}},
        {"optim": {"logit_adjustment": 1.0}},
    ],
    ids=["sampling", "weights", "adjustment"],
)
def test_two_processes_that_accumulate_have_the_losses_of_one_that_does_not(changes, rare_checks, tmp_path) -> None:
    config = small(
        rare_checks, tmp_path / "one", strategy="frozen_head", runtime={"cpu": True}, train={"epochs": 1}, **changes
    )
    single, two = run(config), tmp_path / "two"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = ("train", "--config", tmp_path / "config.yaml", "--out", two, "--train.accumulation", "2")
    done = torchrun(2, *command, cwd=tmp_path).finish()
    assert done.returncode == 0, done.stderr
    assert len(losses(single)) >= 3
    assert losses(two) == pytest.approx(losses(single), rel=1e-5)
    assert summary(two)["world_size"] == 2
    assert summary(two)["val"]["confusion_matrix"] == summary(single)["val"]["confusion_matrix"]
