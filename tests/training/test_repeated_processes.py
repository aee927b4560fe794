"""Two processes train several runs one after the other and stay together in between."""

import pytest
from support.processes import torchrun
from support.runs import small, summary

from headstart.config_io import to_yaml

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_two_processes_train_every_seed_and_keep_the_features_of_every_sample_once(tiny_data, tmp_path):
    config = small(tiny_data, tmp_path / "run", train={"epochs": 1, "seeds": 2}, runtime={"cpu": True})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    done = torchrun(2, "train", "--config", tmp_path / "config.yaml", cwd=tmp_path).finish()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes on cpu") == 2
    # on CPUs the statistics of BatchNorm are of a share of the batch, and the way out is reported
    assert done.stdout.count("--strategy.batchnorm freeze") == 2
    found = summary(tmp_path / "run")
    assert [row["seed"] for row in found["runs"]] == [0, 1]
    assert found["runs"][0]["loss"] != found["runs"][1]["loss"]
    for name in ("seed_0", "seed_1"):
        child = summary(tmp_path / "run" / name)
        assert child["world_size"] == 2
        assert child["calibration"]["none_of_these"]["reference_images"] == 15  # not divisible by 2
