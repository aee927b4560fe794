"""launch.sh without installing anything: its help, and what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY

from headstart.cli.main import COMMANDS

HOME = REPOSITORY


def launch(*arguments, cwd, **environment):
    return subprocess.run(
        ["bash", str(HOME / "launch.sh"), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_names_the_three_uses(tmp_path):
    text = launch("--help", cwd=tmp_path).stdout
    for use in ("./launch.sh [demo DIR]  ", "./launch.sh CONFIG", "--processes N", "./launch.sh test"):
        assert use in text


def test_every_command_is_passed_on():
    """A word that it does not know is taken for the name of a configuration."""
    patterns = re.findall(r"^  ([a-z |]+)\)$", (HOME / "launch.sh").read_text(), flags=re.MULTILINE)
    assert set(COMMANDS) <= set(" | ".join(patterns).split(" | "))


def test_the_packages_of_serve_are_installed():
    """The page is a step that README suggests."""
    extras = re.search(r'-e "\$home\[(.+?)\]"', (HOME / "launch.sh").read_text())
    assert extras is not None
    assert "serve" in extras[1].split(",")


def test_an_unknown_option_is_refused_in_one_line(tmp_path):
    done = launch("--proceses", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--proceses" in done.stderr
    assert "./launch.sh --help" in done.stderr


def test_the_demo_on_several_processes_is_refused_before_anything_is_installed(tmp_path):
    for arguments in (("--processes", "2"), ("--processes", "2", "demo", "folder")):
        done = launch(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "one process" in done.stderr
        assert done.stdout == ""


def test_the_demo_is_one_process_of_headstart(tmp_path):
    """In a copy whose environment is installed already, with a Python that prints its arguments."""
    files = ("launch.sh", "pyproject.toml", "constraints.txt")
    for name in files:
        (tmp_path / name).write_bytes((HOME / name).read_bytes())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "python $*"\nexit "$CODE"\n')
    python.chmod(0o755)
    content = b"".join((tmp_path / name).read_bytes() for name in (*files[1:], files[0]))
    fingerprint = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode().strip()
    (tmp_path / ".venv" / ".installed-demo").write_text(fingerprint)
    for arguments, code in (([], 0), (["demo", "my folder"], 0), (["demo"], 143)):
        command = ["bash", str(tmp_path / "launch.sh"), *arguments]
        environment = {**os.environ, "CODE": str(code)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == code
        folder = arguments[1:] or []
        assert done.stdout.splitlines()[0] == " ".join(["python -m headstart demo", *folder])
        assert ("bin/activate" in done.stdout) == (code == 0)


def test_a_number_of_processes_that_is_not_a_number_is_refused(tmp_path):
    done = launch("--processes", "many", "fine_tune", cwd=tmp_path)
    assert done.returncode == 2
    assert "--processes" in done.stderr
    assert "'many'" in done.stderr


def test_an_old_python_is_named(tmp_path):
    old = tmp_path / "bin"
    old.mkdir()
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
        fake = old / name
        fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
        fake.chmod(0o755)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
        (copy / name).write_bytes((HOME / name).read_bytes())
    done = subprocess.run(
        ["bash", str(copy / "launch.sh")],
        env={**os.environ, "PATH": f"{old}:{os.environ['PATH']}", "PYTHON": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    for version in ("3.11", "3.13", "Python 3.8.1"):
        assert version in done.stderr
    assert not (copy / ".venv").exists()


def test_it_trains_a_config_given_relative_to_the_callers_folder(tmp_path):
    """Uses the environment that the tests run in, so nothing is installed."""
    if Path(sys.prefix) != HOME / ".venv" or not (HOME / ".venv" / ".installed-dev").exists():
        pytest.skip("the tests do not run in the environment that ./launch.sh test makes")
    (tmp_path / "mine.yaml").write_text("train: {epochs: 0}\n")
    done = launch("mine.yaml", "--data.root", "nowhere", cwd=tmp_path)
    assert "python -m headstart train" in done.stdout
    assert "train.epochs" in done.stderr
    assert done.returncode == 2
