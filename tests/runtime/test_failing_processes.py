"""Something breaks in the middle: every process ends soon, one says why, and the run continues from what was saved."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.runs import small

from headstart import checkpoint
from headstart.config import RunConfig
from headstart.errors import known_failure
from headstart.parsing import parse_train, to_yaml
from headstart.training import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WITHIN_S = 30

# trains as the command does; the process of rank argv[1] does argv[2] when it draws its argv[3]-th view
SABOTAGE = """
import os, signal, sys
from headstart import cli
from headstart.data import loading

rank, what, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
drawn = 0
original = loading.Views.__getitem__
def counted(self, item):
    global drawn
    drawn += 1
    if drawn == at and os.environ.get("RANK", "0") == rank:
        open(sys.argv[4], "w").close()
        if what == "raise":
            raise RuntimeError("sabotage")
        if what == "vanish":
            raise loading.OwnInputError("some.jpg was readable when the run began and is not now: gone")
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, item)
loading.Views.__getitem__ = counted
cli.main(["train", *sys.argv[5:]])
"""


def config_of(root: Path, out: Path, **sections: dict) -> RunConfig:
    train = {"epochs": 6, "batch_size": 12, "checkpoint_steps": 2, "resume": "auto"}
    return small(root, out, strategy="frozen_head", train=train, runtime={"cpu": True}, **sections)


def start(config: RunConfig, folder: Path, *, rank: int, what: str, at: int, processes: int = 2) -> subprocess.Popen:
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "sabotage.py").write_text(textwrap.dedent(SABOTAGE))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, str(folder / "sabotage.py"), str(rank), what, str(at), str(folder / "done"),
         "--config", str(folder / "config.yaml")],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait(process: subprocess.Popen, folder: Path) -> str:
    """What was written to stderr; everybody must be gone soon after the sabotage."""
    give_up = time.monotonic() + 120
    while not (folder / "done").exists() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    _, alive = psutil.wait_procs(family[1:], timeout=WITHIN_S)
    assert alive == []
    _, stderr = process.communicate(timeout=WITHIN_S)
    return stderr


def same_as_uninterrupted(config: RunConfig, reference: Path) -> None:
    losses = []
    for folder in (Path(config.out), reference):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.fixture(scope="module")
def reference(tiny_data, tmp_path_factory):
    return run(config_of(tiny_data, tmp_path_factory.mktemp("runs") / "reference"))


@pytest.mark.parametrize(
    ("what", "said"),
    [("raise", "RuntimeError: sabotage"), ("vanish", "headstart: some.jpg was readable"), ("kill", "Signal 9")],
)
def test_one_of_two_processes_fails_and_both_end_and_one_continues(what, said, tiny_data, tmp_path, reference):
    config = config_of(tiny_data, tmp_path / "run")
    process = start(config, tmp_path, rank=1, what=what, at=50)
    stderr = wait(process, tmp_path)
    assert process.returncode != 0
    assert said in stderr
    assert stderr.count("Traceback") <= 1 + stderr.count("torch.distributed.elastic")  # no other than torchrun's own
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())][-1].startswith("step_")
    run(config)  # elastic: on one process
    same_as_uninterrupted(config, reference)


def test_a_signal_to_the_launcher_reaches_the_decoding_processes_and_costs_nothing(tiny_data, tmp_path):
    """torchrun and Slurm signal everybody; a decoding process that died of it would take the checkpoint with it."""
    config = config_of(tiny_data, tmp_path / "run", data={"num_workers": 1})
    config = parse_train(
        ["--config", _written(config, tmp_path), "--train.epochs", "500", "--train.checkpoint_steps", "0"]
    )
    process = start(config, tmp_path, rank=9, what="none", at=0)
    give_up = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # two processes, a worker each
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=WITHIN_S)
    for member in alive:
        member.kill()
    _, said = process.communicate(timeout=WITHIN_S)
    assert alive == []
    assert "saved in" in said
    assert "was killed" not in said
    assert checkpoint.find("auto", tmp_path / "run/checkpoints", say=print) is not None


def test_a_killed_launcher_leaves_no_process_behind(tiny_data, tmp_path):
    config = config_of(tiny_data, tmp_path / "run")
    config = parse_train(["--config", _written(config, tmp_path), "--train.epochs", "500"])
    process = start(config, tmp_path, rank=9, what="none", at=0)
    give_up = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step_??????")) and time.monotonic() < give_up:
        time.sleep(0.05)
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
    checkpoints = tmp_path / "run" / "checkpoints"
    for processes, every, last in ((2, 8, 8), (1, 6, 12), (3, 6, 18)):
        stage = replace(config, train=replace(config.train, checkpoint_steps=every))
        done = start(stage, tmp_path, rank=9, what="none", at=0, processes=processes)
        _, stderr = done.communicate(timeout=120)
        assert done.returncode == 0, stderr
        if last < 18:  # as if it had been killed after that step
            (tmp_path / "run" / "summary.json").unlink()
            for path in checkpoints.iterdir():
                if int(path.name.removeprefix("step_")) > last:
                    shutil.rmtree(path)
            assert (checkpoints / f"step_{last:06d}").exists()
    same_as_uninterrupted(config, reference)
    counts = [json.loads((folder / "summary.json").read_text())["val"]["confusion_matrix"]
              for folder in (tmp_path / "run", reference)]  # fmt: skip
    assert counts[0] == counts[1]


def test_a_killed_decoding_process_is_one_sentence(tiny_data, tmp_path):
    config = config_of(tiny_data, tmp_path / "run", data={"num_workers": 1})
    process = start(config, tmp_path, rank=0, what="kill", at=40, processes=1)
    stderr = wait(process, tmp_path)
    assert "headstart: a decoding process was killed" in stderr, stderr
    assert "this is a bug of ours" not in stderr


@pytest.mark.parametrize(
    "error", ["EOFError()", "ConnectionRefusedError(111, 'refused')", "FileNotFoundError(2, 'gone')"]
)
def test_a_decoding_process_that_dies_while_a_batch_is_fetched_from_it_is_the_same_sentence(error):
    fetching = compile(f"raise {error}", "/python/multiprocessing/resource_sharer.py", "exec")
    with pytest.raises((OSError, EOFError)) as caught:
        exec(fetching)
    assert known_failure(caught.value).startswith("a decoding process was killed")
    assert known_failure(type(caught.value)()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED ON A FULL DISK: mounting a small one needs root")
def test_on_a_full_disk_the_last_good_checkpoint_stays_and_continues(tiny_data, tmp_path, reference):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "none", str(disk)], check=False).returncode:
        pytest.skip("NOT TESTED ON A FULL DISK: tmpfs cannot be mounted here")
    try:
        config = config_of(tiny_data, disk / "run")
        done = subprocess.run(
            [sys.executable, "-m", "headstart", "train", "--config", _written(config, tmp_path)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("headstart: the disk is full")
        assert done.stderr.count("\n") == 1
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        run(config)
        same_as_uninterrupted(config, reference)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_kill_nine_at_any_moment_costs_no_bit(tiny_data, tmp_path, reference):
    config = config_of(tiny_data, tmp_path / "run")
    file = _written(config, tmp_path)
    for lines_seen in (0, 3, 9):
        process = subprocess.Popen([sys.executable, "-m", "headstart", "train", "--config", file],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and len(metrics.read_bytes().splitlines()) > lines_seen:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(config)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


def _written(config: RunConfig, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    return str(path)
