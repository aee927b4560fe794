"""Signals: the first one is remembered, a second one ends the process at once."""

import signal
import subprocess
import sys

import pytest

WAITS = """
import sys, time
from headstart.runtime import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.signal_name is None:
        time.sleep(0.01)
    print(stop.signal_name, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_the_first_signal_is_remembered_and_a_second_one_ends_the_process_at_once(name: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        assert process.stdout.readline() == f"{name}\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143
