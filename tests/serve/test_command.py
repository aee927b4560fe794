"""The command headstart serve: its address, its warning, its options, and how a signal ends it."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.planting import encoded, scene
from support.serving import begin, received, write_model

from headstart.cli.main import main
from headstart.serve import server

IMAGE = encoded(scene(0, 1), "PNG")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["serve", *map(str, arguments)])
    return int(end.value.code or 0)


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command as a process, and its port."""
    command = [sys.executable, "-m", "headstart", "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://[^/]+:(\d+)/", line)
            assert found, (line, process.stderr and process.stderr.read())
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
    """Local addresses of this port, as in /proc/net/tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "address"),
    [
        ("SIGTERM", [], "0100007F"),
        pytest.param("SIGINT", ["--host", "0.0.0.0"], "00000000", marks=pytest.mark.extended),
    ],
)
def test_a_signal_ends_it_after_the_requests_in_flight(name: str, options: list[str], address: str, model) -> None:
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
        error = process.communicate(timeout=30)[1]
        assert process.returncode == 143
        *warnings, last = error.splitlines()
        assert last.startswith("headstart: ")
        assert name in last
        assert len(warnings) == (1 if options else 0)


@pytest.mark.parametrize(("host", "others_can_reach_it"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_it_warns_if_other_machines_can_reach_it(host: str, others_can_reach_it: bool, capsys) -> None:
    with server.listen(host, 0) as listening:
        assert listening.getsockname()[0] == host
    warning = capsys.readouterr().err
    assert (warning.startswith("headstart: warning: ") and host in warning) is others_can_reach_it


def test_a_server_for_all_addresses_prints_one_that_other_machines_reach(monkeypatch) -> None:
    def of(family: socket.AddressFamily, address: str) -> SimpleNamespace:
        return SimpleNamespace(family=family, address=address)

    networks = {
        "lo": [of(socket.AF_INET, "127.0.0.1")],
        "docker0": [of(socket.AF_INET, "172.17.0.1")],
        "off": [of(socket.AF_INET, "192.0.2.9")],
        "eth0": [of(socket.AF_INET6, "fe80::1%eth0"), of(socket.AF_INET, "192.0.2.7"), of(socket.AF_INET6, "fd00::2")],
    }
    monkeypatch.setattr(server.psutil, "net_if_addrs", lambda: networks)
    states = {name: SimpleNamespace(isup=name != "off") for name in networks}
    monkeypatch.setattr(server.psutil, "net_if_stats", lambda: states)
    with server.listen("0.0.0.0", 0) as listening:
        port = listening.getsockname()[1]
        assert server.address(listening) == f"http://192.0.2.7:{port}/"
        assert server.reachable_address(socket.AF_INET6) == "fd00::2"
        del networks["eth0"]
        assert server.address(listening) == f"http://localhost:{port}/"
    with server.listen("127.0.0.1", 0) as listening:
        assert server.address(listening).startswith("http://127.0.0.1:")


def test_a_port_in_use_is_refused(model, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert exit_code(model, "--port", port) == 2
    error = capsys.readouterr().err
    assert f"127.0.0.1 port {port}" in error
    assert "--port 0" in error


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--port", "70000"], ["--port", "70000", "65535"]),
        (["--threads", "0"], ["--threads", "at least 1"]),
        (["--max_images", "0"], ["--max_images", "at least 1"]),
        (["--max_wait_ms", "5000000"], ["--max_wait_ms", "5e+06", "10000"]),
        (["--allow_host", "http://foo.com/"], ["--allow_host http://foo.com/", "models.example.org"]),
        (["--allow_host", "foo.com:80"], ["--allow_host foo.com:80", "models.example.org"]),
        (["--max_megapixels", "many"], ["--max_megapixels", "many"]),
    ],
)
def test_a_mistake_is_refused_in_one_line(options: list[str], fragments: list[str], model, capsys) -> None:
    assert exit_code(model, *options) == 2
    error = capsys.readouterr().err
    for fragment in fragments:
        assert fragment in error
    assert error.count("\n") == 1


def test_a_host_name_that_is_too_long_is_refused(model, capsys, monkeypatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: host.encode("idna"))  # its first step
    assert exit_code(model, "--host", "x" * 80) == 2
    assert f"--host {'x' * 80}" in capsys.readouterr().err


def test_a_run_that_does_not_exist_is_refused(tmp_path, capsys) -> None:
    assert exit_code(tmp_path / "nothing", "--port", "0") == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err


def test_without_its_libraries_it_names_the_command_that_installs_them(model, capsys, monkeypatch) -> None:
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
