"""Training, evaluation and prediction with the network cable out: any connection ends the process."""

import os
import subprocess
import sys

import pytest
from support.runs import small

from headstart.config_io import to_yaml

NO_NETWORK = """
import os, socket

def refuse(*args, **kwargs):
    os.write(2, f"NETWORK USED {args}\\n".encode())
    os._exit(99)

socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
"""


COMMANDS = """
import sys
from headstart.cli import main as cli

for line in sys.stdin.read().splitlines():
    try:
        cli.main(line.split("\\t"))
    except SystemExit as end:
        if end.code:
            sys.exit(f"{line}: {end.code}")
"""


@pytest.mark.slow
def test_no_command_opens_a_connection(tiny_data, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(small(tiny_data, tmp_path / "run", strategy="frozen_head", train={"epochs": 1})))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "home" / "hf"),
    }
    commands = [
        ["train", "--config", config],
        ["evaluate", tmp_path / "run", "--data", tiny_data],
        ["predict", tmp_path / "run", tiny_data / "val"],
        ["train", "--config", config, "--strategy.features", "bank", "--out", tmp_path / "on_bank"],
        ["compare", tmp_path / "run", tmp_path / "on_bank"],
        ["report", tmp_path / "run"],
        ["push", tmp_path / "run", "me/drawn", "--dry-run"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input="\n".join("\t".join(map(str, command)) for command in commands),
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr


def test_the_guard_of_the_test_above_would_notice(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    done = subprocess.run(
        [sys.executable, "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9')"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 99
