"""Several processes fill one bank, each its share, and one solves for the head."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from runs import small

from headstart.parsing import to_yaml
from headstart.start import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_two_processes_share_the_extraction_and_end_with_the_file_of_one(tiny_data, tmp_path):
    config = small(
        tiny_data, tmp_path / "one", strategy="frozen_head", runtime={"bank": str(tmp_path / "a"), "cpu": True}
    )
    config = replace(config, strategy=replace(config.strategy, features="bank"))
    single = run(config)
    two = replace(config, out=str(tmp_path / "two"), runtime=replace(config.runtime, bank=str(tmp_path / "b")))
    (tmp_path / "config.yaml").write_text(to_yaml(two))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "headstart", "train", "--config", str(tmp_path / "config.yaml")],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "51 computed" in done.stdout
    shards = list((tmp_path / "b").glob("*/*.safetensors"))
    assert len(shards) == 2  # one merged file of each process
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["world_size"] == 2
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
