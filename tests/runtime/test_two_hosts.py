"""Two hosts made of network namespaces and a cable between them; the cable is cut in the middle."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.runs import small

from headstart.config_io import to_yaml
from headstart.training.run import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

HOSTS = ("headstart-a", "headstart-b")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[None]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("NOT TESTED ON TWO HOSTS: needs root and the command ip")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        ip("link", "add", "hs-a", "netns", HOSTS[0], "type", "veth", "peer", "name", "hs-b", "netns", HOSTS[1])
        for number, (host, end) in enumerate(zip(HOSTS, ("hs-a", "hs-b"), strict=True), start=1):
            ip("-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", host, "link", "set", end, "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NOT TESTED ON TWO HOSTS: no network namespaces here ({error.stderr.decode().strip()})")
    finally:
        for host in HOSTS:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", host)


def host(number: int, *arguments: str) -> subprocess.Popen:
    """`headstart train` as one of two hosts."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--node_rank",
        str(number),
        "--nproc_per_node",
        "1",
        "--master_addr",
        "10.77.0.1",
        "--master_port",
        "29517",
    ]
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[number], sys.executable, *launcher, "-m", "headstart", "train", *arguments],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": ("hs-a", "hs-b")[number]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_cut_cable_ends_both_hosts_with_a_sentence_and_one_host_continues(cable, tiny_data, tmp_path):
    train = {"epochs": 12, "batch_size": 12, "checkpoint_steps": 3, "resume": "auto"}
    # a host waits a few seconds for the other, not half an hour
    config = small(
        tiny_data, tmp_path / "run", strategy="frozen_head", train=train, runtime={"cpu": True, "timeout_minutes": 0.15}
    )
    straight = run(small(tiny_data, tmp_path / "straight", strategy="frozen_head", train=train, runtime={"cpu": True}))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    hosts = [host(number, "--config", str(tmp_path / "config.yaml")) for number in (0, 1)]
    give_up = time.monotonic() + 100
    while not list((tmp_path / "run").glob("checkpoints/step_000003")) and time.monotonic() < give_up:
        assert all(process.poll() is None for process in hosts), [process.communicate() for process in hosts]
        time.sleep(0.02)
    ip("-n", HOSTS[0], "link", "set", "hs-a", "down")
    errors = []
    for process in hosts:
        try:
            errors.append(process.communicate(timeout=90)[1])
        except subprocess.TimeoutExpired:
            process.kill()
            errors.append(process.communicate()[1])
            raise AssertionError(errors[-1]) from None
    assert all(process.returncode != 0 for process in hosts)
    assert any("ends because another one is gone or cannot be reached" in text for text in errors), errors
    assert not (tmp_path / "run" / "summary.json").exists()
    run(config)  # one host is left
    rows = []
    for folder in (tmp_path / "run", straight):
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        rows.append([line["loss"] for line in lines if "loss" in line])
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
