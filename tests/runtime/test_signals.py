"""Signals and closed terminals: the first signal is stored, a second ends the process, a closed pipe is harmless."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.runs import small

from headstart.cli.output import outliving_the_reader
from headstart.config_io import to_yaml
from headstart.errors import Stopped
from headstart.runtime import signals
from headstart.runtime.signals import StopRequest, answered_ctrl_c, ended_at_once


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which this process would have ended at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_the_first_signal_is_remembered_and_a_second_request_ends_the_process(name, exits, monkeypatch) -> None:
    monkeypatch.setattr(StopRequest, "second_signal_ends_process", True)  # as the command line does
    with StopRequest() as stop:
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.signal_name == name
        os.kill(os.getpid(), signal.SIGTERM)  # within a second: passed on by a launcher
        assert exits == []
        monkeypatch.setattr(signals, "SAME_REQUEST_S", 0.0)
        os.kill(os.getpid(), signal.SIGHUP)  # a closed terminal sends several
        assert exits == []
        assert stop.signal_name == name
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits == ([] if name == "SIGHUP" else [143])  # the first request of a person after a closed terminal
        os.kill(os.getpid(), signal.SIGTERM)
        assert exits[-1:] == [143]


def test_in_python_a_second_ctrl_c_raises_keyboard_interrupt_and_handlers_are_restored(exits, monkeypatch) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST_S", 0.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started pytest without it
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal_name == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert exits == []
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_hangup_stays_ignored_and_handlers_are_restored(exits) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal_name is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_a_run_goes_on_without_its_reader_and_a_closed_terminal_saves_it(tiny_data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(small(tiny_data, tmp_path / "run", train={"epochs": 400})))
    command = [sys.executable, "-m", "headstart", "train", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()  # like `| head -1`
        until = time.monotonic() + 120
        while '"epoch": 3' not in _metrics(tmp_path / "run"):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 143
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step_*")]


@pytest.mark.parametrize("closed", [None, io.StringIO(), SimpleNamespace(write=len, flush=lambda: None)])
def test_output_that_is_no_file_stays_as_it_is(closed: object, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", closed)
    with outliving_the_reader():
        assert sys.stdout is closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_raises_once(monkeypatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with outliving_the_reader():
            with pytest.raises(OSError, match="No space left"):
                print("a line")
            print("another line")


def _metrics(run: Path) -> str:
    path = run / "metrics.jsonl"
    return path.read_text() if path.exists() else ""


def test_on_the_command_line_the_first_signal_is_answered_at_once_and_in_python_it_is_not(exits, monkeypatch, capfd):
    with StopRequest("a checkpoint is saved"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(StopRequest, "second_signal_ends_process", True)
    with StopRequest("a checkpoint is saved"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == ""  # not a terminal: the one message at the end is enough
    monkeypatch.setattr(os, "isatty", lambda _: True)
    with StopRequest("a checkpoint is saved"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by a launcher
        answer = capfd.readouterr().err
    assert answer.count("\n") == 1
    for fragment in ("stopping", "a checkpoint is saved", "Ctrl-C"):
        assert fragment in answer
    monkeypatch.setenv("RANK", "1")
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_ctrl_c_outside_of_a_stop_request_is_answered_and_raises_as_usual(monkeypatch, capfd) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), answered_ctrl_c():
            signal.raise_signal(signal.SIGINT)
        assert "stopping" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_work_that_cannot_be_resumed_ends_at_once_and_is_cleaned_up(name, monkeypatch, capfd) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    cleaned = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        try:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(60)
        except Exception:
            pytest.fail("a library would have swallowed it")
        finally:
            cleaned.append(True)

    with pytest.raises(Stopped, match=f"{name}; nothing is written"), ended_at_once("nothing is written"):
        work()
    assert cleaned
    assert "stopping" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
