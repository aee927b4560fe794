"""Several processes on one CPU through gloo: the same samples, rates, counts; errors end every process."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.runs import small

from headstart.parsing import to_yaml
from headstart.training import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# trains as the command does, and writes the sample indices of every step as each process saw them
RECORDER = """
import json, sys
from headstart import cli
from headstart.data import loading

seen = []
def recording(items, original=loading.collate):
    seen.append([item["index"] for item in items])
    return original(items)
loading.collate = recording
try:
    cli.main(["train", *sys.argv[2:]])
finally:
    import os
    with open(f"{sys.argv[1]}/seen-{os.environ['RANK']}.json", "w") as out:
        json.dump(seen, out)
"""


def torchrun(processes: int, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*launcher, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True, text=True, timeout=180
    )


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("processes", "strategy"), [(2, "frozen_head"), (3, "fine_tune")])
def test_several_processes_train_on_the_same_samples_and_measure_the_same(processes, strategy, tiny_data, tmp_path):
    # 36 training images in batches of 12; 16 validation images are not divisible by 3, 15 of them not by 2
    config = small(
        tiny_data, tmp_path / "one", strategy=strategy, runtime={"cpu": True}, train={"epochs": 3, "batch_size": 12}
    )
    config = replace(config, strategy=replace(config.strategy, batchnorm="freeze"))
    single = run(config)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "recorder.py").write_text(textwrap.dedent(RECORDER))
    done = torchrun(
        processes,
        tmp_path / "recorder.py",
        tmp_path,
        "--config",
        tmp_path / "config.yaml",
        "--out",
        tmp_path / "two",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert f"{processes} processes on cpu" in done.stdout

    one = [row for row in lines(single) if "loss" in row]
    two = [row for row in lines(tmp_path / "two") if "loss" in row]
    assert len(one) == len(two) == 9
    assert [row["lr"] for row in two] == [row["lr"] for row in one]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)

    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (single, tmp_path / "two")]
    assert summaries[1]["world_size"] == processes
    assert summaries[1]["val"]["confusion_matrix"] == summaries[0]["val"]["confusion_matrix"]
    assert summaries[1]["val"]["n"] == 15
    assert summaries[1]["val"]["loss"] == pytest.approx(summaries[0]["val"]["loss"], rel=1e-5)

    tables = [pq.read_table(folder / "predictions.parquet") for folder in (single, tmp_path / "two")]
    exact = [name for name in tables[0].column_names if name != "probabilities"]
    assert tables[1].select(exact).equals(tables[0].select(exact))
    first, second = (np.array(table["probabilities"].to_pylist()) for table in tables)
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-5)

    from headstart.config import DataConfig
    from headstart.data.folders import ClassFolders
    from headstart.data.manifest import build_manifest
    from headstart.data.sampling import StepSampler, keys_of

    shares = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(processes)]
    samples = build_manifest(ClassFolders(str(tiny_data)), DataConfig(), seed=0).of("train")
    expected = [
        [index for index, _ in step]
        for step in StepSampler(keys_of([s.id for s in samples]), batch_size=12, num_steps=9, seed=0)
    ]
    drawn = [[step for step in rank if len(step) == 12 // processes] for rank in shares]
    together = [[index for part in parts for index in part] for parts in zip(*drawn, strict=True)]
    assert together == expected


def test_a_mistake_of_the_user_ends_all_processes_with_one_sentence(tiny_data, tmp_path):
    broken = tmp_path / "data"
    for label in ("a", "b"):
        (broken / label).mkdir(parents=True)
        (broken / label / "x.jpg").write_bytes(b"")
    done = torchrun(2, "-m", "headstart", "train", "--data.root", broken, "--model.weights", "none", cwd=tmp_path)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("headstart:")]
    assert len(ours) == 1
    assert "2 unreadable files" in ours[0]
    assert "empty file" in ours[0]
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_does_not_divide_is_refused_with_both_numbers(tiny_data, tmp_path):
    done = torchrun(
        2, "-m", "headstart", "train", "--data.root", tiny_data, "--train.batch_size", "9", cwd=tmp_path
    )  # fmt: skip
    assert "train.batch_size 9 is not divisible by 2 processes x 1 accumulation = 2; use 8 or 10" in done.stderr
