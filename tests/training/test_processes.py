"""Several processes on one CPU through gloo: the same samples, rates, counts; errors end every process."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.processes import headstart_recording_images, torchrun
from support.runs import losses, small, steps, summary

from headstart.config import DataConfig
from headstart.config_io import to_yaml
from headstart.data.manifest import build_manifest
from headstart.data.sampling import StepSampler, keys_of
from headstart.data.sources.folders import ClassFolders
from headstart.training.run import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


# 36 training images in batches of 12; 16 validation images are not divisible by 3, 15 of them not by 2
@pytest.mark.parametrize(
    ("processes", "strategy", "num_epochs"),
    [(2, "frozen_head", 2), (2, "fine_tune", 1), pytest.param(3, "fine_tune", 2, marks=pytest.mark.extended)],
)
def test_several_processes_train_on_the_same_samples_and_evaluate_the_same(
    processes, strategy, num_epochs, tiny_data, tmp_path
):
    config = small(
        tiny_data,
        tmp_path / "one",
        strategy=strategy,
        runtime={"cpu": True},
        train={"batch_size": 12, "epochs": num_epochs},
        data={"cache": "off"},
    )
    config = replace(config, strategy=replace(config.strategy, batchnorm="freeze"))
    single, several = run(config), tmp_path / "several"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = ("train", "--config", tmp_path / "config.yaml", "--out", several)
    done = torchrun(processes, str(tiny_data), *command, cwd=tmp_path, work=headstart_recording_images).finish()
    assert done.returncode == 0, done.stderr
    assert f"{processes} processes on cpu" in done.stdout

    assert len(losses(single)) == len(losses(several)) == 3 * num_epochs
    assert [row["lr"] for row in steps(several)] == [row["lr"] for row in steps(single)]
    assert losses(several) == pytest.approx(losses(single), rel=1e-5)

    assert summary(several)["world_size"] == processes
    assert summary(several)["val"]["confusion_matrix"] == summary(single)["val"]["confusion_matrix"]
    assert summary(several)["val"]["n"] == 15
    assert summary(several)["val"]["loss"] == pytest.approx(summary(single)["val"]["loss"], rel=1e-5)

    tables = [pq.read_table(folder / "predictions.parquet") for folder in (single, several)]
    exact = [name for name in tables[0].column_names if name != "probabilities"]
    assert tables[1].select(exact).equals(tables[0].select(exact))
    first, second = (np.array(table["probabilities"].to_pylist()) for table in tables)
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-5)

    samples = build_manifest(ClassFolders(str(tiny_data)), DataConfig(), seed=0).of("train")
    order = StepSampler(keys_of([sample.id for sample in samples]), batch_size=12, num_steps=3 * num_epochs, seed=0)
    drawn = [[str(tiny_data / samples[index].path) for index, _ in step] for step in order]
    share = 12 // processes
    for rank in range(processes):
        opened = json.loads((tmp_path / f"opened-{rank}.json").read_text())
        trained_on = [name for name in opened if name.startswith(f"{tiny_data}/train")]
        trained_on = trained_on[12:] if rank == 0 else trained_on  # without those of train_batch.png
        assert trained_on == [name for step in drawn for name in step[rank * share : (rank + 1) * share]]


def test_a_mistake_of_the_user_ends_all_processes_with_one_message(tiny_data, tmp_path):
    broken = tmp_path / "data"
    for label in ("a", "b"):
        (broken / label).mkdir(parents=True)
        (broken / label / "x.jpg").write_bytes(b"")
    done = torchrun(2, "train", "--data.root", broken, "--model.weights", "none", cwd=tmp_path).finish()
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("headstart:")]
    assert len(ours) == 1
    assert "2 unreadable files" in ours[0]
    assert "x.jpg" in ours[0]
    assert not (tmp_path / "runs").exists()


def test_a_batch_size_that_does_not_divide_is_refused_with_those_that_do(tiny_data, tmp_path):
    done = torchrun(
        2, "train", "--data.root", tiny_data, "--config", "fine_tune", "--train.batch_size", "9", cwd=tmp_path
    ).finish()
    assert done.returncode != 0
    (ours,) = [line for line in done.stderr.splitlines() if line.startswith("headstart:")]
    for fragment in ("train.batch_size 9", "2 processes", "8 or 10"):
        assert fragment in ours
