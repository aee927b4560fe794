"""headstart resume and headstart open, and the commands that the end of a run suggests."""

import io
import logging
import re
import shlex
import shutil
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import exit_code, small, stopped_at, summary

from headstart.cli import open_page
from headstart.cli.data import choose_parser
from headstart.cli.output import clickable
from headstart.cli.resume import resume_parser
from headstart.cli.train import parse_train
from headstart.config_io import to_yaml
from headstart.messages import LOG
from headstart.runs.lock import resume_command
from headstart.training.run import run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the browser was asked to open."""
    pages: list[str] = []
    monkeypatch.setattr(webbrowser, "open", pages.append)
    return pages


# ------------------------------------------------------------------------------------------------- resume


def test_a_folder_without_a_run_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    for command in ("resume", "open"):
        for name, fragment in (("empty", "does not contain a run"), ("file", "is a file"), ("gone", "does not exist")):
            assert exit_code(command, name) == 2
            complaint = capsys.readouterr().err
            assert complaint.count("\n") == 1
            assert name in complaint
            assert fragment in complaint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_finished_run_is_not_resumed(bf16_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (bf16_run / "summary.json").read_bytes()
    assert exit_code("resume", bf16_run) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "finished" in printed
    assert f"headstart open {bf16_run}" in printed
    assert exit_code("resume", bf16_run, "--optim.lr", "0.5") == 2
    assert "optim.lr 0.5" in capsys.readouterr().err
    assert (bf16_run / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--out", "elsewhere"), "--out"),
        (("--train.resume=never",), "--train.resume"),
        (("--config", "fine_tune"), "--config"),
        (("another_run",), "another_run"),
        (("--runtime.thread", "1"), "runtime.threads?"),
    ],
)
def test_what_resume_cannot_change_is_refused(
    words: tuple[str, ...], fragment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert exit_code("resume", tmp_path, *words) == 2
    assert fragment in capsys.readouterr().err
    assert resume_parser().parse_args(["runs/first", *words]).run == "runs/first"


@pytest.mark.slow
def test_a_head_that_was_stopped_while_features_are_computed_is_resumed(tiny_data: Path, tmp_path: Path) -> None:
    """It has no run folder until then. The name of the folder has a space."""
    folder, file = tmp_path / "my run", tmp_path / "config.yaml"
    config = small(
        tiny_data, folder, strategy="frozen_head", data={"cache": "off"}, runtime={"bank": str(tmp_path / "bank")}
    )
    config = replace(config, strategy=replace(config.strategy, features="bank"), probe=replace(config.probe, l2=1.0))
    file.write_text(to_yaml(config))
    stopped = stopped_at(4, tmp_path / "bank", file)  # of its files: the first features
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.endswith(f": headstart resume '{folder}'\n")
    assert not (folder / "summary.json").exists()
    assert exit_code("resume", folder) == 0
    assert summary(folder)["features"]["computed"] < 51
    other = replace(config, out=str(tmp_path / "other"), runtime=replace(config.runtime, bank=str(tmp_path / "bank_2")))
    expected = run(other)
    assert summary(folder)["model_sha256"] == summary(expected)["model_sha256"]


def test_the_command_to_resume_one_of_repeated_runs_resumes_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "five folds" / "fold_1").mkdir(parents=True)
    (tmp_path / "five folds" / "config.yaml").write_text("{seed: 0, train: {folds: 5, seeds: 1}}\n")
    command = f"headstart resume '{tmp_path}/five folds'"
    assert resume_command(tmp_path / "five folds" / "fold_1") == command
    assert resume_command(tmp_path / "five folds") == command
    assert resume_command(tmp_path / "five folds" / "notes").endswith("notes'")


# ------------------------------------------------------------------------------------------------- open


def test_open_prints_the_path_and_opens_the_page_where_there_is_a_display(
    bf16_run: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = bf16_run / "report.html"
    monkeypatch.setattr(open_page, "has_display", lambda: False)
    assert exit_code("open", bf16_run) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert opened == []
    monkeypatch.setattr(open_page, "has_display", lambda: True)
    assert exit_code("open", bf16_run) == 0
    assert opened == [page.as_uri()]


def test_a_linux_machine_without_a_screen_has_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not open_page.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert open_page.has_display()


def test_open_names_the_command_that_makes_the_report(
    bf16_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "manifest.parquet"):
        shutil.copy(bf16_run / name, tmp_path / name)
    assert exit_code("open", tmp_path) == 2
    assert f"headstart resume {tmp_path}" in capsys.readouterr().err
    shutil.copy(bf16_run / "summary.json", tmp_path)
    assert exit_code("open", tmp_path) == 2
    assert f"headstart report {tmp_path}" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TERMINALS = ("TMUX", "TERM", "VTE_VERSION", "TERM_PROGRAM", "WT_SESSION", "KONSOLE_VERSION", "DOMTERM")


@pytest.mark.parametrize(
    ("variables", "links"),
    [
        ({"TERM": "xterm-256color"}, False),
        ({"TERM": "xterm-256color", "VTE_VERSION": "7006"}, True),
        ({"TERM": "screen-256color", "VTE_VERSION": "7006"}, False),
        ({"TERM": "xterm-kitty"}, True),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "vscode"}, True),
    ],
)
def test_a_path_is_a_link_only_on_a_terminal_that_supports_it(
    variables: dict[str, str], links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TERMINALS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    page = tmp_path / "a run" / "100%" / "report.html"
    assert clickable(page) == str(page)  # the output of a test is not a terminal
    monkeypatch.setattr(sys, "stdout", Terminal())
    LOG.info("report: %s", page)
    link = f"\033]8;;file://{tmp_path}/a%20run/100%25/report.html\033\\{page}\033]8;;\033\\"
    assert sys.stdout.getvalue() == f"report: {link if links else page}\n"  # type: ignore[attr-defined]


def test_a_relative_path_is_printed_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert clickable(Path("runs/first")) == f"{tmp_path}/runs/first"


# ------------------------------------------------------------------------------------------------- what comes next


@pytest.mark.slow
def test_a_run_ends_with_its_report_and_with_commands_that_can_be_pasted(
    image_folder, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root, out = image_folder(train=12, val=5, name="my photos").relative_to(tmp_path), Path("runs/it's")
    caplog.set_level(logging.INFO)
    run(small(root, out, strategy="frozen_head", train={"epochs": 1}))
    report, suggested = [record.getMessage() for record in caplog.records][-2:]
    assert report == f"report: {out / 'report.html'}"
    title, *commands = suggested.split("\n  ")
    assert title == "next:"
    assert not re.search(r"\.\.\.|[A-Z]{4}", suggested)
    assert [shlex.split(line)[1] for line in commands] == ["open", "predict", "train", "choose"]
    assert exit_code(*shlex.split(commands[0])[1:]) == 0
    assert exit_code(*shlex.split(commands[1])[1:]) == 0
    tuned = parse_train(shlex.split(commands[2])[2:])
    assert (tuned.strategy.name, tuned.data.root, tuned.data.image_size) == ("probe_then_tune", str(root), 32)
    assert choose_parser().parse_args(shlex.split(commands[3])[2:]).dir == str(root)
