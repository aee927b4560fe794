"""What is shown of a run while it goes on: in its own terminal, in a log, and from another terminal."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from support.runs import small

from headstart import cli, progress
from headstart.progress import Display, Status, TrainingProgress
from headstart.running import RUNNING, Running, is_over
from headstart.start import run
from headstart.watch import watch_command

ENDS = [5, 9, 14]


def exit_code(*argv):
    with pytest.raises(SystemExit) as end:
        cli.main([str(part) for part in argv])
    return end.value.code


@pytest.fixture
def folder(tmp_path):
    """A run of 36 images, 3 epochs of batches of 8, that has laid out its folder: nothing is logged yet."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"train": {"batch_size": 8, "epochs": 3}}))
    pq.write_table(pa.table({"split": ["train"] * 36 + ["val"] * 15}), path / "manifest.parquet")
    return path


def log(path, *, steps=(), epochs=(), time_s=0.25):
    with (path / "metrics.jsonl").open("a") as lines:
        for step in steps:
            line = {"step": step, "loss": 1 / step, "accuracy": 0.5, "lr": {"head": 0.1}, "time_s": time_s}
            lines.write(json.dumps(line) + "\n")
        for epoch in epochs:
            line = {"step": ENDS[epoch - 1], "epoch": epoch, "train_loss": 0.5, "train_accuracy": 0.75, "val_loss": 0.4,
                    "val_correct": 12, "val_n": 15, "val_accuracy": 0.8, "time_s": 3.0}  # fmt: skip
            lines.write(json.dumps(line) + "\n")


def finish(path):
    val = {"accuracy": 0.8, "accuracy_ci95": [0.548, 0.93], "correct": 12, "n": 15}
    (path / "summary.json").write_text(json.dumps({"val": val, "wall_s": 12.3}))


def test_the_epoch_is_the_one_that_is_trained():
    assert [Status.at(step, ENDS).epoch for step in (0, 4, 5, 6, 9, 10, 13, 14)] == [1, 1, 1, 2, 2, 3, 3, 3]


def test_once_says_where_a_run_is(folder, capsys):
    Running(folder)
    assert exit_code("watch", folder, "--once") == 0
    assert capsys.readouterr().out == "epoch 1/3  step 0/14\n"
    log(folder, steps=range(1, 8), epochs=[1])
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 8, "lo')  # is being written
    assert exit_code("watch", folder, "--once") == 0
    loss = sum(1 / step for step in range(1, 8)) / 7
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/3  train loss 0.5000 accuracy 75.0 %  val loss 0.4000 accuracy 80.0 % (12 of 15)",
        f"epoch 2/3  step 7/14  loss {loss:.4f}  accuracy 50.0 %  32 img/s  2 s left",
    ]
    finish(folder)
    assert exit_code("watch", folder, "--once") == 0
    assert capsys.readouterr().out.endswith("finished, accuracy 80.0 % [54.8 %, 93.0 %], 12 of 15, 12 s\n")


def test_a_watcher_waits_for_the_beginning_and_ends_with_the_run(folder, capsys):
    hidden = folder.rename(folder.with_name("not_yet"))
    moments = iter(
        [
            lambda: None,
            lambda: (Running(hidden), hidden.rename(folder)),
            lambda: log(folder, steps=range(1, 6), epochs=[1]),
            lambda: log(folder, steps=range(6, 15), epochs=[2, 3]),
            lambda: finish(folder),
        ]
    )
    watch_command(str(folder), once=False, pause=lambda _: next(moments)())
    assert list(moments) == []
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"waiting for a run to begin in {folder}"
    assert [line.split("  ")[0] for line in said if "train loss" in line] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert said[-1].startswith(f"{folder}: finished, accuracy 80.0 %")


def test_a_watcher_ends_when_the_process_is_gone(folder, capsys):
    Running(folder)
    log(folder, steps=range(1, 4))
    (folder / RUNNING).write_text(json.dumps({"pid": _ended_process(), "host": socket.gethostname(), "since": 0}))
    watch_command(str(folder), once=False, pause=_never)
    assert "the process that wrote it is gone" in capsys.readouterr().out


def test_a_process_that_took_over_the_number_is_not_the_run(folder):
    running = Running(folder)
    assert not is_over(folder)
    about = json.loads((folder / RUNNING).read_text())
    assert about["pid"] == os.getpid()
    (folder / RUNNING).write_text(json.dumps({**about, "since": about["since"] - 100}))
    assert is_over(folder)
    (folder / RUNNING).write_text(json.dumps({**about, "pid": _ended_process(), "host": "another machine"}))
    assert not is_over(folder), "this machine cannot know"
    running.end()
    assert is_over(folder)


def test_an_error_ends_the_running(folder):
    with pytest.raises(ZeroDivisionError), Running(folder):
        1 / 0  # noqa: B018
    assert not (folder / RUNNING).exists()


def test_the_time_left_counts_down_until_the_next_steps_are_seen(folder, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    Running(folder)
    log(folder, steps=range(1, 8), epochs=[1], time_s=10.0)
    moments = iter(
        [
            lambda: None,
            lambda: None,
            lambda: log(folder, steps=[8], time_s=10.0),
            lambda: log(folder, steps=[9], time_s=10.0),
            lambda: None,  # validation: no step is expected
            lambda: finish(folder),
        ]
    )

    def pause(_):
        clock[0] += 6.0
        next(moments)()

    watch_command(str(folder), once=False, pause=pause)
    left = re.findall(r"step (\d+)/14 .* (\S+) (?:s|min) left", capsys.readouterr().out)
    assert left == [("7", "1:04"), ("7", "58"), ("8", "1:00"), ("9", "50"), ("9", "50"), ("9", "50")]


@pytest.fixture
def repeats(tmp_path):
    """A folder in which two seeds are going to be trained; child(0) lays out the first one."""
    path = tmp_path / "repeats"
    path.mkdir()
    Running(path)
    (path / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "train": {"seeds": 2, "folds": 0}}))

    def child(number):
        folder = path / f"seed_{number}"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"batch_size": 8, "epochs": 3}}))
        pq.write_table(pa.table({"split": ["train"] * 36 + ["val"] * 15}), folder / "manifest.parquet")
        Running(folder)
        return folder

    return path, child


def finish_all(path):
    summary = {"repeats": "seeds", "runs": [{}, {}], "val": {"n": 15, "accuracy": 0.8, "accuracy_ci95": None},
               "spread": {"accuracy": {"mean": 0.8, "lowest": 0.75, "highest": 0.85}}, "wall_s": 30.0}  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))


def test_repeated_runs_are_followed_one_after_the_other(repeats, capsys):
    path, child = repeats
    moments = iter(
        [
            lambda: child(0),
            lambda: log(path / "seed_0", steps=range(1, 6), epochs=[1]),
            lambda: finish(path / "seed_0"),
            lambda: None,
            lambda: log(child(1), steps=range(1, 15), epochs=[1, 2, 3]),
            lambda: finish(path / "seed_1"),
            lambda: finish_all(path),
        ]
    )
    watch_command(str(path), once=False, pause=lambda _: next(moments)())
    assert list(moments) == []
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].removeprefix(f"{path}/") for line in said] == [
        "seed_0: 1 of 2",
        "epoch 1/3",
        "seed_0: finished, accuracy 80.0 % [54.8 %, 93.0 %], 12 of 15, 12 s",
        "seed_1: 2 of 2",
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
        "seed_1: finished, accuracy 80.0 % [54.8 %, 93.0 %], 12 of 15, 12 s",
        f"{path}: finished, 2 seeds, accuracy 80.0 % on average, 75.0 % to 85.0 %, 30 s",
    ]


def test_a_watcher_of_repeated_runs_ends_when_their_process_is_gone(repeats, capsys):
    path, child = repeats
    finish(child(0))
    log(child(1), steps=range(1, 4))
    for folder in (path, path / "seed_1"):
        (folder / RUNNING).write_text(json.dumps({"pid": _ended_process(), "host": socket.gethostname(), "since": 0}))
    watch_command(str(path), once=False, pause=_never)
    said = capsys.readouterr().out.splitlines()
    assert said[:1] == ["seed_0: 1 of 2"]
    assert said[-1].startswith(f"{path}: the process that wrote it is gone")


def test_once_says_where_repeated_runs_are(repeats, capsys):
    path, child = repeats
    assert exit_code("watch", path, "--once") == 0
    assert capsys.readouterr().out == "none of 2 runs has begun\n"
    finish(child(0))
    log(child(1), steps=range(1, 5))
    assert exit_code("watch", path, "--once") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "seed_1: 2 of 2"
    assert said[1].startswith("epoch 1/3  step 4/14")
    finish_all(path)
    assert exit_code("watch", path, "--once") == 0
    assert "finished, 2 seeds, accuracy 80.0 % on average" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"), [("none", "does not exist"), ("empty", "holds no run"), ("run", "is damaged")]
)
def test_what_cannot_be_watched_is_refused(name, message, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (folder / "metrics.jsonl").write_text("no json\n")
    assert exit_code("watch", tmp_path / name, "--once") == 2
    assert message in capsys.readouterr().err


def test_a_real_run_is_seen_from_another_process_and_leaves_no_trace(tiny_data, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", f"from headstart.cli import main; main(['watch', {str(out)!r}])"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        run(small(tiny_data, out, strategy="frozen_head"))
        said, _ = watcher.communicate(timeout=60)
    finally:
        watcher.kill()
    assert watcher.returncode == 0, said
    summary = json.loads((out / "summary.json").read_text())
    assert f"{summary['val']['correct']} of {summary['val']['n']}" in said.splitlines()[-1]
    assert len(re.findall(r"^epoch [12]/2  train loss", said, flags=re.MULTILINE)) == 2
    assert not (out / RUNNING).exists()


def test_a_log_gets_a_line_when_one_is_due_and_never_asks_for_memory_in_between(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    asked = []
    watched = TrainingProgress(
        ends=[40, 80], start_step=0, batch_size=8, speaks=True, memory=lambda: asked.append(1) or 2_000_000_000
    )
    with watched:
        for _ in range(60):
            clock[0] += 0.5
            watched.seen(8 * 0.25, 6, 8)
            watched.step_done()
        watched.say("something")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "epoch 1/2  step 10/80  loss 0.2500  accuracy 75.0 %  16 img/s  2.0 GB  35 s left"
    assert len(said) == 7
    assert said[-1] == "something"
    assert len(asked) == 6


def test_only_the_process_that_speaks_speaks(capsys):
    watched = TrainingProgress(ends=[10], start_step=0, batch_size=8, speaks=False, memory=_never)
    with watched:
        watched.seen(1, 1, 1)
        watched.step_done()
        watched.say("nothing")
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_with_all_of_it(monkeypatch):
    out = io.StringIO()

    def terminal(**options):
        return Console(file=out, force_terminal=True, width=140, **options)

    monkeypatch.setattr(progress, "Console", terminal)
    status = Status.at(7, ENDS, loss=0.5, accuracy=0.75, images_per_s=31.0, left_s=200.0, memory_bytes=1_500_000_000)
    with Display(Status.at(0, ENDS), speaks=True) as display:
        display.show(status)
        display._bar.refresh()
        display.say("epoch 1/3 is done")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "step 7/14  loss 0.5000  accuracy 75.0 %  31 img/s  1.5 GB  3:20 min left" in text
    assert "epoch 2/3" in text
    assert "epoch 1/3 is done" in text


def _ended_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(timeout=60)
    while psutil.pid_exists(process.pid):
        time.sleep(0.01)
    return process.pid


def _never(*_):
    raise AssertionError("called")
