"""Every way to start a run, and what it prints about itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from support.processes import Started
from support.processes import headstart as headstart_command
from support.runs import losses, small

import headstart
from headstart.backbones import RESNET18
from headstart.config import RuntimeConfig
from headstart.config_io import to_yaml
from headstart.model.build import build_model
from headstart.runtime.accelerator import start_accelerator

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

MINE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


ACCELERATE = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


@pytest.fixture
def config(tiny_data, tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        to_yaml(small(tiny_data, tmp_path / "run", strategy="frozen_head", train={"epochs": 1}, runtime={"cpu": True}))
    )
    return path


def of_one_launcher() -> dict[str, str]:
    """The environment without what another launcher may have left in it."""
    return {name: value for name, value in os.environ.items() if name not in MINE}


def test_accelerate_launch_that_starts_one_process_instead_of_two_is_noticed(config) -> None:
    launcher = ["accelerate.commands.launch", *ACCELERATE, "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "headstart", "train", "--config", str(config)],
        env=of_one_launcher(),
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "torchrun --nproc_per_node N" in done.stdout
    assert "1 process on cpu" in done.stdout


@pytest.mark.parametrize("options", ["of the command line", "of a file"])
def test_accelerate_launch_with_one_process_is_followed_without_a_notice(
    options, config, tmp_path, monkeypatch
) -> None:
    """The environment that it makes is the one that the test above sees as a process."""
    file = tmp_path / "accelerate.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nuse_cpu: true\nnum_processes: 1\nnum_machines: 1\n"
        "mixed_precision: 'no'\nmachine_rank: 0\n"
    )
    given = (
        [*ACCELERATE, "--cpu", "--num_processes", "1"]
        if options == "of the command line"
        else ["--config_file", str(file)]
    )
    for name in MINE:
        monkeypatch.delenv(name, raising=False)
    parser = launch_command_parser()
    arguments = parser.parse_args([*given, "-m", "headstart", "train", "--config", str(config)])
    arguments, *_ = _validate_launch_command(arguments)
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    assert command[1:] == ["-m", "headstart", "train", "--config", str(config)]
    done = Started(headstart_command, *command[3:], cwd=tmp_path, environment=environment).finish()
    assert done.returncode == 0, done.stderr
    assert "torchrun" not in done.stdout
    assert "1 process on cpu, fp32 (requested), 1 thread" in done.stdout


def test_in_a_notebook_it_is_a_function(tiny_data, tmp_path, capsys) -> None:
    folder = headstart.train(small(tiny_data, tmp_path / "run", strategy="frozen_head", train={"epochs": 1})).path
    assert (folder / "summary.json").exists()
    printed = capsys.readouterr().out
    for fragment in ("1 process on cpu", "1 thread", "0 decoding workers", "batch 8"):
        assert fragment in printed


def test_synchronised_batchnorm_keeps_the_keys() -> None:
    """What training.run does on several GPUs; its forward pass exists there only."""
    model = build_model(RESNET18, 3, tensors=None, head_init="zero", seed=0)
    keys = list(model.state_dict())
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    assert list(converted.state_dict()) == keys
    assert isinstance(model.bn1, torch.nn.SyncBatchNorm)


def test_compilation_is_requested_from_accelerate_and_changes_no_key(tiny_data, tmp_path) -> None:
    plugin = start_accelerator(RuntimeConfig(compile=True, mixed_precision="no", cpu=True)).state.dynamo_plugin
    assert plugin.to_dict()["backend"].lower() == "inductor"
    if "HEADSTART_TEST_COMPILE" not in os.environ or shutil.which("g++") is None:
        pytest.skip("NOT COMPILED: a minute and a half; set HEADSTART_TEST_COMPILE=1 where there is a g++")
    plain, compiled = (
        headstart.train(
            small(
                tiny_data,
                tmp_path / str(value),
                strategy="frozen_head",
                train={"epochs": 1},
                runtime={"compile": value},
            )
        )
        for value in (False, True)
    )
    assert losses(compiled.path) == pytest.approx(losses(plain.path), rel=1e-4)
    assert headstart.load(compiled).classes == headstart.load(plain).classes
