"""The progress of a run: in its own terminal, in a log, and from another terminal."""

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
from support.runs import small

from headstart.cli.main import main
from headstart.runs import progress
from headstart.runs.lock import RUNNING, RunLock, is_over
from headstart.runs.progress import Status, TrainingProgress
from headstart.runs.watch import watch_command
from headstart.training.run import run

ENDS = [5, 9, 14]
FINISHED = ("finished", "80.0", "54.8", "93.0", "12 of 15", "12 s")  # the last line about a run that `finish` ended


def has_in_order(line, *fragments):
    """Whether the line holds these fragments one after the other."""
    return re.search(".*".join(re.escape(fragment) for fragment in fragments), line) is not None


def exit_code(*argv):
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return end.value.code


@pytest.fixture
def folder(tmp_path):
    """A run of 36 images, 3 epochs, batch size 8, whose folder exists: nothing is logged yet."""
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
            line = {
                "step": ENDS[epoch - 1],
                "epoch": epoch,
                "train_loss": 0.5,
                "train_accuracy": 0.75,
                "val_loss": 0.4,
                "val_correct": 12,
                "val_n": 15,
                "val_accuracy": 0.8,
                "time_s": 3.0,
            }
            lines.write(json.dumps(line) + "\n")


def finish(path):
    val = {"accuracy": 0.8, "accuracy_ci95": [0.548, 0.93], "correct": 12, "n": 15}
    (path / "summary.json").write_text(json.dumps({"val": val, "wall_s": 12.3}))


def test_the_epoch_of_a_step_is_the_one_in_training():
    assert [Status.at(step, ENDS).epoch for step in (0, 4, 5, 6, 9, 10, 13, 14)] == [1, 1, 1, 2, 2, 3, 3, 3]


def test_once_prints_the_progress_of_a_run(folder, capsys):
    RunLock(folder)
    assert exit_code("watch", folder, "--once") == 0
    assert has_in_order(capsys.readouterr().out, "1/3", "0/14")
    log(folder, steps=range(1, 8), epochs=[1])
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 8, "lo')  # is being written
    assert exit_code("watch", folder, "--once") == 0
    loss = sum(1 / step for step in range(1, 8)) / 7
    first, second = capsys.readouterr().out.splitlines()
    assert has_in_order(first, "1/3", "train", "0.5000", "75.0", "val", "0.4000", "80.0", "12 of 15")
    assert has_in_order(second, "2/3", "7/14", f"{loss:.4f}", "50.0", "32 img/s", "2 s")
    finish(folder)
    assert exit_code("watch", folder, "--once") == 0
    assert has_in_order(capsys.readouterr().out.splitlines()[-1], *FINISHED)


def test_a_watcher_waits_for_the_beginning_and_ends_with_the_run(folder, capsys):
    hidden = folder.rename(folder.with_name("not_yet"))
    moments = iter(
        [
            lambda: None,
            lambda: (RunLock(hidden), hidden.rename(folder)),
            lambda: log(folder, steps=range(1, 6), epochs=[1]),
            lambda: log(folder, steps=range(6, 15), epochs=[2, 3]),
            lambda: finish(folder),
        ]
    )
    watch_command(str(folder), once=False, pause=lambda _: next(moments)())
    assert list(moments) == []
    first, *between, last = capsys.readouterr().out.splitlines()
    assert str(folder) in first
    assert re.findall(r"(\d/3).*12 of 15", "\n".join(between)) == ["1/3", "2/3", "3/3"]
    assert has_in_order(last, str(folder), *FINISHED)


def test_a_watcher_ends_when_the_process_is_gone(folder, capsys):
    RunLock(folder)
    log(folder, steps=range(1, 4))
    (folder / RUNNING).write_text(json.dumps({"pid": _ended_process(), "host": socket.gethostname(), "since": 0}))
    watch_command(str(folder), once=False, pause=_never)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "process" in last
    assert "finished" not in last


def test_a_process_that_took_over_the_number_is_not_the_run(folder):
    running = RunLock(folder)
    assert not is_over(folder)
    about = json.loads((folder / RUNNING).read_text())
    assert about["pid"] == os.getpid()
    (folder / RUNNING).write_text(json.dumps({**about, "since": about["since"] - 100}))
    assert is_over(folder)
    (folder / RUNNING).write_text(json.dumps({**about, "pid": _ended_process(), "host": "another machine"}))
    assert not is_over(folder), "this machine cannot know"
    running.release()
    assert is_over(folder)


def test_an_error_ends_the_running(folder):
    with pytest.raises(ZeroDivisionError), RunLock(folder):
        1 / 0  # noqa: B018
    assert not (folder / RUNNING).exists()


def test_the_time_left_counts_down_until_the_next_steps_are_seen(folder, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    RunLock(folder)
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
    left = re.findall(r"(\d+)/14\b.* (\S+) (?:s|min)\b", capsys.readouterr().out)
    assert left == [("7", "1:04"), ("7", "58"), ("8", "1:00"), ("9", "50"), ("9", "50"), ("9", "50")]


@pytest.fixture
def repeats(tmp_path):
    """A folder in which two seeds are going to be trained; child(0) lays out the first one."""
    path = tmp_path / "repeats"
    path.mkdir()
    RunLock(path)
    (path / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "train": {"seeds": 2, "folds": 0}}))

    def child(number):
        folder = path / f"seed_{number}"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"batch_size": 8, "epochs": 3}}))
        pq.write_table(pa.table({"split": ["train"] * 36 + ["val"] * 15}), folder / "manifest.parquet")
        RunLock(folder)
        return folder

    return path, child


ALL_FINISHED = ("finished", "2 seeds", "80.0", "75.0", "85.0", "30 s")


def finish_all(path):
    summary = {
        "repeats": "seeds",
        "runs": [{}, {}],
        "val": {"n": 15, "accuracy": 0.8, "accuracy_ci95": None},
        "spread": {"accuracy": {"mean": 0.8, "lowest": 0.75, "highest": 0.85}},
        "wall_s": 30.0,
    }
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
    expected = [
        ("seed_0", "1 of 2"),
        ("1/3", "12 of 15"),
        ("seed_0", *FINISHED),
        ("seed_1", "2 of 2"),
        ("1/3", "12 of 15"),
        ("2/3", "12 of 15"),
        ("3/3", "12 of 15"),
        ("seed_1", *FINISHED),
        (str(path), *ALL_FINISHED),
    ]
    for line, fragments in zip(capsys.readouterr().out.splitlines(), expected, strict=True):
        assert has_in_order(line, *fragments), line


def test_a_watcher_of_repeated_runs_ends_when_their_process_is_gone(repeats, capsys):
    path, child = repeats
    finish(child(0))
    log(child(1), steps=range(1, 4))
    for folder in (path, path / "seed_1"):
        (folder / RUNNING).write_text(json.dumps({"pid": _ended_process(), "host": socket.gethostname(), "since": 0}))
    watch_command(str(path), once=False, pause=_never)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert has_in_order(first, "seed_0", "1 of 2")
    assert has_in_order(last, str(path), "process")
    assert "finished" not in last


def test_once_prints_the_progress_of_repeated_runs(repeats, capsys):
    path, child = repeats
    assert exit_code("watch", path, "--once") == 0
    assert "2 runs" in capsys.readouterr().out
    finish(child(0))
    log(child(1), steps=range(1, 5))
    assert exit_code("watch", path, "--once") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert has_in_order(first, "seed_1", "2 of 2")
    assert has_in_order(second, "1/3", "4/14")
    finish_all(path)
    assert exit_code("watch", path, "--once") == 0
    assert has_in_order(capsys.readouterr().out, *ALL_FINISHED)


@pytest.mark.parametrize(("name", "fragment"), [("none", "none"), ("empty", "empty"), ("run", "run/metrics.jsonl")])
def test_what_cannot_be_watched_is_refused(name, fragment, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (folder / "metrics.jsonl").write_text("no json\n")
    assert exit_code("watch", tmp_path / name, "--once") == 2
    assert str(tmp_path / fragment) in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_run_is_seen_from_another_process_and_leaves_no_trace(tiny_data, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", f"from headstart.cli.main import main; main(['watch', {str(out)!r}])"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        run(small(tiny_data, out, strategy="frozen_head"))
        printed, _ = watcher.communicate(timeout=100)
    finally:
        watcher.kill()
    assert watcher.returncode == 0, printed
    summary = json.loads((out / "summary.json").read_text())
    assert f"{summary['val']['correct']} of {summary['val']['n']}" in printed.splitlines()[-1]
    assert re.findall(r"([12]/2).*\d+ of 15", printed) == ["1/2", "2/2"]
    assert not (out / RUNNING).exists()


def test_a_log_gets_a_line_when_one_is_due_and_reads_the_memory_only_then(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    reads = []
    watched = TrainingProgress(
        ends=[40, 80], start_step=0, batch_size=8, memory=lambda: reads.append(1) or 2_000_000_000
    )
    with watched:
        for _ in range(60):
            clock[0] += 0.5
            watched.add(8 * 0.25, 6, 8)
            watched.step_done()
        watched.print("something")
    lines = capsys.readouterr().out.splitlines()
    assert has_in_order(lines[0], "1/2", "10/80", "0.2500", "75.0", "16 img/s", "2.0 GB", "35 s")
    assert len(lines) == 7
    assert lines[-1] == "something"
    assert len(reads) == 6


def test_only_the_main_process_prints(capsys):
    watched = TrainingProgress(ends=[10], start_step=0, batch_size=8, style="silent", memory=_never)
    with watched:
        watched.add(1, 1, 1)
        watched.step_done()
        watched.print("nothing")
    assert capsys.readouterr().out == ""


def _ended_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(timeout=60)
    while psutil.pid_exists(process.pid):
        time.sleep(0.01)
    return process.pid


def _never(*_):
    raise AssertionError("called")
