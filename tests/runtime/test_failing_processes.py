"""Failures during a run: every process ends soon, one reports the reason, and the run resumes from its checkpoint."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.processes import Started, headstart, headstart_with_fault, pid_of, torchrun
from support.runs import losses, small, summary

from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.errors import known_failure
from headstart.training import checkpoint
from headstart.training.run import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WITHIN_S = 30


def config_of(root: Path, out: Path, **data: object) -> RunConfig:
    train = {"epochs": 4, "batch_size": 12, "checkpoint_steps": 2, "resume": "auto"}  # 3 steps in each epoch
    data = {"cache": "off", **data}  # each image is opened each time that it is used
    return small(root, out, strategy="frozen_head", train=train, runtime={"cpu": True}, data=data)


def command(config: RunConfig, folder: Path, *options: str) -> tuple[str, ...]:
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    return ("train", "--config", str(path), *options)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def launched(*arguments: str, cwd: Path) -> subprocess.Popen:
    """By torchrun itself: it starts processes in sessions of their own, which forked ones are not."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "headstart"]
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def reference(tiny_data, tmp_path_factory):
    """The same run without any fault."""
    return run(config_of(tiny_data, tmp_path_factory.mktemp("runs") / "reference"))


def test_one_of_two_processes_fails_and_both_end_and_one_continues(tiny_data, tmp_path, reference):
    config = config_of(tiny_data, tmp_path / "run")
    # a process opens 6 images for each step, one step ahead, and 8 in each evaluation
    for fault, nth, fragments, last in (
        ("error", 24, ["RuntimeError: sabotage", "headstart: "], "step_000002"),
        ("unreadable", 30, [f"headstart: {tiny_data}/train/", "[Errno 5]"], "step_000004"),
        ("kill", 30, ["Signal 9"], "step_000006"),
    ):
        arguments = (fault, nth, str(tiny_data), 1, *command(config, tmp_path))
        done = torchrun(2, *arguments, cwd=tmp_path, work=headstart_with_fault).finish(timeout_s=90)
        assert done.returncode != 0
        for fragment in fragments:
            assert fragment in done.stderr, fault
        assert "forcefully exiting" not in done.stderr, "the other process ends by itself"
        # a traceback of ours only for an error that is a bug; the others are of the agent and of this test
        ours = done.stderr.count("/headstart/training/run.py")
        assert (ours > 0) == (fault == "error"), done.stderr
        assert not any(psutil.pid_exists(pid_of(rank, tmp_path)) for rank in (0, 1))
        assert checkpoints(tmp_path / "run")[-1] == last, fault
        assert not (tmp_path / "run" / "summary.json").exists()
    run(config)  # elastic: on one process
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=1e-5)


def test_a_signal_to_the_launcher_reaches_the_decoding_processes_and_costs_nothing(tiny_data, tmp_path):
    """torchrun and Slurm signal everybody; a decoding process that died of it would take the checkpoint with it."""
    config = config_of(tiny_data, tmp_path / "run", num_workers=1)
    options = ("--train.epochs", "500", "--train.checkpoint_steps", "0")
    process = launched(*command(config, tmp_path, *options), cwd=tmp_path)
    give_up = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # two processes, a worker each
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=WITHIN_S)
    for member in alive:
        member.kill()
    _, stderr = process.communicate(timeout=WITHIN_S)
    assert alive == []
    assert f"headstart resume {tmp_path / 'run'}\n" in stderr
    assert "was killed" not in stderr
    assert checkpoint.find("auto", tmp_path / "run/checkpoints") is not None


def test_a_killed_launcher_leaves_no_process_behind(tiny_data, tmp_path):
    config = config_of(tiny_data, tmp_path / "run")
    process = launched(*command(config, tmp_path, "--train.epochs", "500"), cwd=tmp_path)
    give_up = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step_??????")) and time.monotonic() < give_up:
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.kill()
    _, alive = psutil.wait_procs(family, timeout=WITHIN_S)
    for member in alive:
        member.kill()
    process.communicate(timeout=WITHIN_S)
    assert alive == []


def test_a_run_continues_on_any_number_of_processes(tiny_data, tmp_path, reference):
    config = config_of(tiny_data, tmp_path / "run")
    config = replace(config, train=replace(config.train, checkpoint_steps=0))
    arguments = ("stop", 13, str(tiny_data), 1, *command(config, tmp_path))
    stopped = torchrun(2, *arguments, cwd=tmp_path, work=headstart_with_fault).finish()
    assert f"headstart resume {tmp_path / 'run'}\n" in stopped.stderr
    assert checkpoints(tmp_path / "run") == ["step_000002"]

    # continuing opens it once to read it, and then for the lines of step 3, before the evaluation
    metrics = str(tmp_path / "run" / "metrics.jsonl")
    stopped = Started(headstart_with_fault, "stop", 2, metrics, 0, *command(config, tmp_path), cwd=tmp_path).finish()
    assert stopped.returncode == 143, stopped.stderr
    assert checkpoints(tmp_path / "run")[-1] == "step_000003"

    done = torchrun(3, "resume", tmp_path / "run", cwd=tmp_path).finish()
    assert done.returncode == 0, done.stderr
    assert "3 processes on cpu" in done.stdout
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=1e-5)
    found, expected = (summary(folder)["val"]["confusion_matrix"] for folder in (tmp_path / "run", reference))
    assert found == expected


def test_a_killed_decoding_process_is_reported_with_the_options_that_help(tiny_data, tmp_path):
    config = config_of(tiny_data, tmp_path / "run", num_workers=1)
    # this process opens 12 images for train_batch.png, and its worker counts on from there
    arguments = ("kill", 40, str(tiny_data), 0, *command(config, tmp_path))
    done = Started(headstart_with_fault, *arguments, cwd=tmp_path).finish()
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("headstart: ")
    assert done.stderr.count("\n") == 1
    for fragment in ("killed", "--data.num_workers", "headstart resume"):
        assert fragment in done.stderr


@pytest.mark.parametrize(
    "error", ["EOFError()", "ConnectionRefusedError(111, 'refused')", "FileNotFoundError(2, 'gone')"]
)
def test_a_decoding_process_that_dies_while_a_batch_is_fetched_from_it_is_the_same_message(error):
    fetching = compile(f"raise {error}", "/python/multiprocessing/resource_sharer.py", "exec")
    with pytest.raises((OSError, EOFError)) as caught:
        exec(fetching)
    assert "--data.num_workers" in (known_failure(caught.value) or "")
    assert known_failure(type(caught.value)()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED ON A FULL DISK: mounting a small one needs root")
def test_on_a_full_disk_the_last_good_checkpoint_stays_and_continues(tiny_data, tmp_path, reference):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "none", str(disk)], check=False).returncode:
        pytest.skip("NOT TESTED ON A FULL DISK: tmpfs cannot be mounted here")
    try:
        config = config_of(tiny_data, disk / "run")
        done = Started(headstart, *command(config, tmp_path), cwd=tmp_path).finish()
        assert done.returncode == 1
        assert done.stderr.startswith("headstart: the disk is full")
        assert done.stderr.count("\n") == 1
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        run(config)
        assert losses(disk / "run") == pytest.approx(losses(reference), rel=1e-5)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_kill_nine_at_any_moment_costs_no_bit(tiny_data, tmp_path, reference):
    config = config_of(tiny_data, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    for num_lines in (0, 3, 9):
        process = Started(headstart, *command(config, tmp_path), cwd=tmp_path)
        while process.is_running():
            if metrics.exists() and len(metrics.read_bytes().splitlines()) > num_lines:
                break
            time.sleep(0.01)
        process.kill()
    run(config)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
