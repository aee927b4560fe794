"""Two processes train several runs one after the other and stay together in between."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from support.runs import small

from headstart.parsing import to_yaml

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_two_processes_train_every_seed_and_keep_the_features_of_every_sample_once(tiny_data, tmp_path):
    config = small(tiny_data, tmp_path / "run", train={"epochs": 1, "seeds": 2}, runtime={"cpu": True})
    (tmp_path / "config.yaml").write_text(to_yaml(replace(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "headstart", "train", "--config", str(tmp_path / "config.yaml")],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes on cpu") == 2
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["seed"] for row in found["runs"]] == [0, 1]
    assert found["runs"][0]["loss"] != found["runs"][1]["loss"]
    for name in ("seed_0", "seed_1"):
        child = json.loads((tmp_path / "run" / name / "summary.json").read_text())
        assert child["world_size"] == 2
        assert child["calibration"]["none_of_these"]["reference_images"] == 15  # not divisible by 2
