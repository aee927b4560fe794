"""Training from shards: the model of the folder, on one process and on two; in small windows, too, and resumed exactly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.layouts import as_parquet_shards, as_tar_shards
from support.runs import small, stopped_at

from headstart.errors import InputError
from headstart.parsing import to_yaml
from headstart.start import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BRIEF = {"strategy": "frozen_head", "train": {"epochs": 1}}


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def on_two_processes(config: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "-m", "headstart", "train", "--config", str(config)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tar_and_parquet_shards_train_the_model_of_the_folder(tiny_data, tmp_path):
    (tmp_path / "tar").mkdir()
    (tmp_path / "parquet").mkdir()
    tar, parquet = as_tar_shards(tiny_data, tmp_path / "tar"), as_parquet_shards(tiny_data, tmp_path / "parquet")
    folder = losses(run(small(tiny_data, tmp_path / "folder", **BRIEF)))
    assert losses(run(small(Path(parquet), tmp_path / "one", data={"num_workers": 2}, **BRIEF))) == folder

    config = tmp_path / "two.yaml"
    config.write_text(to_yaml(small(Path(tar), tmp_path / "two", data={"num_workers": 1}, **BRIEF)))
    on_two_processes(config)
    assert losses(tmp_path / "two") == pytest.approx(folder, rel=1e-5)


def test_in_small_windows_they_train_alike_on_two_processes_and_resume_exactly(tiny_data, tmp_path):
    (tmp_path / "data").mkdir()
    root = Path(as_parquet_shards(tiny_data, tmp_path / "data"))
    windows = {"data": {"shuffle_images": 10}, "strategy": "frozen_head"}
    whole = run(small(root, tmp_path / "whole", **windows))
    config = tmp_path / "two.yaml"
    config.write_text(to_yaml(small(root, tmp_path / "two", **windows)))
    on_two_processes(config)
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), rel=1e-5)

    config.write_text(to_yaml(small(root, tmp_path / "cut", **windows)))
    assert stopped_at(30, config, tmp_path).returncode == 143
    with pytest.raises(InputError, match="lie in other row groups than those of"):  # the same images in no row groups
        run(small(tiny_data, tmp_path / "cut", train={"resume": "auto"}, **windows))
    run(small(root, tmp_path / "cut", train={"resume": "auto"}, **windows))
    assert losses(tmp_path / "cut") == losses(whole)
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
