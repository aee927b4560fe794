"""Training from shards gives the model of the folder: on one process and two, in small windows, and resumed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.layouts import as_parquet_shards, as_tar_shards
from support.processes import torchrun
from support.runs import losses, small

from headstart.config_io import to_yaml
from headstart.errors import InputError
from headstart.training.run import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BRIEF = {"strategy": "frozen_head", "train": {"epochs": 1}}


def on_two_processes(config: Path) -> None:
    done = torchrun(2, "train", "--config", config, cwd=config.parent).finish()
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stdout


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
    windows = {"data": {"shuffle_images": 10}, "strategy": "frozen_head", "train": {"checkpoint_steps": 3}}
    whole = run(small(root, tmp_path / "whole", **windows))
    config = tmp_path / "two.yaml"
    config.write_text(to_yaml(small(root, tmp_path / "two", **windows)))
    on_two_processes(config)
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), rel=1e-5)

    cut = tmp_path / "cut"  # as if it had been killed after step 3, in the middle of a window
    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step_000006")
    windows["train"] = {"resume": "auto"}
    with pytest.raises(InputError, match="row groups"):  # the same images in no row groups
        run(small(tiny_data, cut, **windows))
    continued = small(root, cut, **windows)
    run(replace(continued, train=replace(continued.train, checkpoint_steps=0)))
    assert losses(cut) == losses(whole)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
