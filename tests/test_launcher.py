"""The variables of a launcher: complete, absent, or refused in one sentence."""

import subprocess
import sys

import pytest
from support.runs import exit_code

from headstart.launcher import wrong_environment

COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
OF_LAUNCHERS = (*COMPLETE, "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OF_LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def set_all(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        COMPLETE,
        COMPLETE | {"LOCAL_WORLD_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},  # accelerate launch of one process
        {name: value for name, value in COMPLETE.items() if name != "LOCAL_RANK"},  # a pod of Kubernetes
    ],
)
def test_what_launchers_set_is_accepted(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(values, monkeypatch)
    assert wrong_environment() == ""


WRONG = [
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE", "RANK, MASTER_ADDR, MASTER_PORT", "unset WORLD_SIZE"),
    ({"LOCAL_RANK": "0"}, "LOCAL_RANK", "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT", "unset LOCAL_RANK"),
    ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_ADDR, MASTER_PORT", "unset LOCAL_RANK"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE", "torchrun"),
    ({"PMI_SIZE": "4"}, "PMI_SIZE", "torchrun"),
    (COMPLETE | {"WORLD_SIZE": "abc"}, "WORLD_SIZE", "'abc'", "whole number"),
    (COMPLETE | {"WORLD_SIZE": "0"}, "WORLD_SIZE", "'0'"),
    (COMPLETE | {"RANK": "-1"}, "RANK", "'-1'", "of at least 0:"),
    (COMPLETE | {"RANK": ""}, "RANK", "''"),
    (COMPLETE | {"RANK": "2"}, "RANK", "2", "WORLD_SIZE"),
    (COMPLETE | {"MASTER_PORT": "http"}, "MASTER_PORT", "'http'"),
    (COMPLETE | {"MASTER_ADDR": ""}, "MASTER_ADDR", "WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE", "'0'"),
    ({"RANK": "3"}, "RANK", "unset RANK"),
]


@pytest.mark.parametrize(("values", "fragments"), [(values, fragments) for values, *fragments in WRONG])
def test_what_was_left_over_is_refused(
    values: dict[str, str],
    fragments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_all(values, monkeypatch)
    assert exit_code("doctor") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [fragment for fragment in fragments if fragment not in line] == []


def test_a_deleted_working_folder_is_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert exit_code("predict", tmp_path / "run", "photo.jpg") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "working folder was deleted" in line
    assert exit_code("--help") == 0


def test_too_few_open_files_are_refused_because_workers_would_wait_forever() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); "
        "from headstart.cli.main import main; main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "40 open files" in done.stderr
