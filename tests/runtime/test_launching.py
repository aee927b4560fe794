"""Every way to start a run, and what it says of itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.runs import small

import headstart
from headstart.config import RuntimeConfig
from headstart.model import build_model
from headstart.parsing import to_yaml
from headstart.runtime import start_accelerator

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

MINE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched(launcher: list[str], config: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "headstart", "train", "--config", str(config)],
        env={**{name: value for name, value in os.environ.items() if name not in MINE}, **environment},
        cwd=config.parent, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.fixture
def config(tiny_data, tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        to_yaml(small(tiny_data, tmp_path / "run", strategy="frozen_head", train={"epochs": 1}, runtime={"cpu": True}))
    )
    return path


ACCELERATE = ["accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def test_accelerate_launch_that_starts_one_process_instead_of_two_is_noticed(config) -> None:
    done = launched([*ACCELERATE, "--cpu", "--num_processes", "2"], config)
    assert done.returncode == 0, done.stderr
    assert "asked for several processes and started this one alone" in done.stdout
    assert "torchrun --nproc_per_node N" in done.stdout
    assert "1 process on cpu" in done.stdout


def test_accelerate_launch_with_one_process_says_nothing_of_the_kind(config) -> None:
    done = launched([*ACCELERATE, "--cpu", "--num_processes", "1"], config)
    assert done.returncode == 0, done.stderr
    assert "started this one alone" not in done.stdout
    assert "1 process on cpu, no (as asked), 1 thread" in done.stdout


def test_an_accelerate_config_file_is_followed(config, tmp_path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nuse_cpu: true\nnum_processes: 1\nnum_machines: 1\n"
        "mixed_precision: 'no'\nmachine_rank: 0\n"
    )
    done = launched(["accelerate.commands.launch", "--config_file", str(file)], config)
    assert done.returncode == 0, done.stderr
    assert "1 process on cpu" in done.stdout


def test_the_batchnorm_deviation_of_cpu_processes_is_said(tiny_data, tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(small(tiny_data, tmp_path / "run", train={"epochs": 1}, runtime={"cpu": True})))
    done = launched(["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], path, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "BatchNorm statistics are those of each process's share of the batch" in done.stdout


def test_in_a_notebook_it_is_a_function(tiny_data, tmp_path, capsys) -> None:
    folder = headstart.train(small(tiny_data, tmp_path / "run", strategy="frozen_head", train={"epochs": 1}))
    assert (folder / "summary.json").exists()
    assert (
        "1 process on cpu, no (as asked), 1 thread and 0 decoding workers each, global batch 8"
        in capsys.readouterr().out
    )


def test_synchronised_batchnorm_keeps_the_keys() -> None:
    """What training.run does on several GPUs; its forward pass exists there only."""
    model = build_model(3, backbone=None, head_init="zero", seed=0)
    keys = list(model.state_dict())
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    assert list(converted.state_dict()) == keys
    assert isinstance(model.bn1, torch.nn.SyncBatchNorm)


def test_compiling_is_asked_of_accelerate_and_changes_no_key(tiny_data, tmp_path) -> None:
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
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (plain, compiled)
    ]
    losses = [[row["loss"] for row in lines if "loss" in row] for lines in rows]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert headstart.load(compiled).classes == headstart.load(plain).classes
