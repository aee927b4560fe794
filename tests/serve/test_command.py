"""headstart serve as a process: the address, the warning, the signal."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from support.planting import encoded, scene
from support.serving import begin, received, write_model

from headstart import cli

IMAGE = encoded(scene(0, 1), "PNG")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *map(str, arguments)])
    return int(end.value.code or 0)


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command as a process, and its port."""
    command = [sys.executable, "-m", "headstart", "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://[^/]+:(\d+)/", said)
            assert found, (said, process.stderr and process.stderr.read())
            yield process, int(found[1])
        finally:
            process.kill()


def waiting(port: int) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/health")
    text = connection.getresponse().read()
    connection.close()
    return int(re.findall(rb'"waiting":(\d+)', text)[0])


def refused(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) != 0


def listens_on(port: int) -> list[str]:
    """Addresses of this machine, as /proc/net/tcp has them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "address"), [("SIGTERM", [], "0100007F"), ("SIGINT", ["--host", "0.0.0.0"], "00000000")]
)
def test_a_signal_ends_it_after_what_is_in_flight(name: str, options: list[str], address: str, model) -> None:
    with serving(model, *options) as (process, port):
        if Path("/proc/net/tcp").exists():
            assert listens_on(port) == [address]
        with begin(port, declared=len(IMAGE), sent=IMAGE[:100]) as half_sent:
            while waiting(port) == 0:
                pass
            process.send_signal(getattr(signal, name))
            while not refused(port):
                pass
            half_sent.sendall(IMAGE[100:])
            answer = received(half_sent)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"label"' in answer
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 143
        warnings = ["headstart: warning: whoever can reach 0.0.0.0 can use this server"] if options else []
        expected = [*warnings, f"headstart: {name}: everything that was asked before it has been answered"]
        assert [line[: len(start)] for line, start in zip(said.splitlines(), expected, strict=True)] == expected


def test_an_address_that_is_taken_is_one_sentence(model, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert exit_code(model, "--port", port) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--threads", "0"], "--threads is 0"),
        (["--max_images", "0"], "--max_images is 0"),
        (["--max_wait_ms", "5000000"], "--max_wait_ms is 5e+06; it must be at most 10000"),
        (["--allow_host", "http://foo.com/"], "--allow_host http://foo.com/ is no bare name of a host"),
        (["--allow_host", "foo.com:80"], "without http:// and port"),
        (["--max_megapixels", "many"], "invalid int value"),
    ],
)
def test_a_mistake_is_one_sentence(options: list[str], part: str, model, capsys) -> None:
    assert exit_code(model, *options) == 2
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1


def test_a_name_that_is_longer_than_names_can_be_is_one_sentence(model, capsys, monkeypatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: host.encode("idna"))  # what it does first
    assert exit_code(model, "--host", "x" * 80) == 2
    assert "is no address of this machine (no name of a machine)" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_one_sentence(tmp_path, capsys) -> None:
    assert exit_code(tmp_path / "nothing", "--port", "0") == 2
    assert "does not exist" in capsys.readouterr().err


def test_without_its_libraries_it_says_how_to_install_them(model, capsys, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("headstart.serve", "starlette"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.types", None)
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert exit_code(model) == 2
    assert "pip install 'headstart[serve]'" in capsys.readouterr().err


def test_every_limit_is_an_option(capsys) -> None:
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    for name in ("megabytes", "megapixels", "images", "seconds", "requests", "megabytes_together", "batch", "wait_ms"):
        assert f"--max_{name}" in text
    assert "127.0.0.1" in text
