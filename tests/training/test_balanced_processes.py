"""What makes up for rare classes computes the same on two processes and under accumulation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import small

from headstart.parsing import to_yaml
from headstart.training import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(
    "way",
    [
        {"data": {"sampling": "balanced"}},
        {"optim": {"class_weights": "balanced"}},
        {"optim": {"logit_adjustment": 1.0}},
    ],
    ids=["sampling", "weights", "adjustment"],
)
def test_two_processes_that_accumulate_have_the_losses_of_one_that_does_not(way, tiny_data, tmp_path) -> None:
    root = tmp_path / "data"
    shutil.copytree(tiny_data, root)
    for path in sorted((root / "train" / "red_checks").iterdir())[3:]:
        path.unlink()
    config = small(root, tmp_path / "one", strategy="frozen_head", runtime={"cpu": True}, **way)
    single = run(config)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "headstart",
    ]
    changes = ["--out", str(tmp_path / "two"), "--train.accumulation", "2"]
    done = subprocess.run(
        [*command, "train", "--config", str(tmp_path / "config.yaml"), *changes],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(single), rel=1e-5)
    values = [json.loads((folder / "summary.json").read_text())["val"] for folder in (single, tmp_path / "two")]
    assert values[1]["confusion_matrix"] == values[0]["confusion_matrix"]
