"""headstart bench data: its conclusions from medians, and its detection of an input that is too slow."""

import re

import pytest

from headstart.cli.main import main
from headstart.diagnostics.bench_input import conclude

RATES = {"read": 9000.0, "decode": 120.0, "training transform": 400.0, "step": 100.0}


def rates(*, given: list[float], decoding: list[float], run: list[float]) -> dict[str, float]:
    found = dict(RATES)
    for workers in range(len(run)):
        found[f"input, {workers} workers"] = given[workers]
        found[f"input, {workers} workers, decoding"] = decoding[workers]
        found[f"run, {workers} workers"] = run[workers]
        found[f"share, {workers} workers"] = run[workers] / RATES["step"]
    return found


def test_a_run_as_fast_as_its_step_takes_the_fewest_workers() -> None:
    share, bottleneck, settings = conclude(
        rates(given=[400, 700, 800], decoding=[90, 90, 180], run=[80, 97.5, 98]), counts=[0, 1, 2]
    )
    assert re.search(r"97\.5\s?%", share)
    assert "step" in bottleneck
    assert "700 img/s" in bottleneck
    assert "--data.num_workers 1 --data.cache auto " in settings


@pytest.mark.parametrize(("cached", "slowest"), [(False, "120 img/s"), (True, "400 img/s")])
def test_an_input_that_is_too_slow_is_named_with_its_slowest_part(cached, slowest) -> None:
    decoding = [20.0, 30.0] if cached else [50.0, 60.0]
    _, bottleneck, settings = conclude(rates(given=[50, 60], decoding=decoding, run=[40, 60]), counts=[0, 1])
    assert "60 img/s" in bottleneck
    assert slowest in bottleneck
    assert f"--data.cache {'auto' if cached else 'off'} " in settings


def test_cores_that_are_shared_are_named() -> None:
    _, bottleneck, _ = conclude(rates(given=[300, 400], decoding=[90, 90], run=[70, 80]), counts=[0, 1])
    for fragment in ("core", "400 img/s", "step"):
        assert fragment in bottleneck


def bench(root, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main(
            [
                "bench",
                "data",
                "--data",
                str(root),
                "--image_size",
                "32",
                "--batch_size",
                "4",
                "--threads",
                "1",
                "--mixed_precision",
                "no",
                "--rounds",
                "1",
                "--steps",
                "3",
            ]
        )
    captured = capsys.readouterr()
    assert end.value.code == 0, captured.err
    return captured.out


@pytest.mark.slow
def test_every_stage_and_the_real_run_are_measured(tiny_data, capsys, monkeypatch) -> None:
    monkeypatch.setattr("headstart.diagnostics.bench_input.usable_cores", lambda: 1)
    printed = bench(tiny_data, capsys)
    for stage in (
        "read",
        "decode",
        "decode, 1 threads",
        "training transform",
        "evaluation transform",
        "step",
        "run, 1 workers",
    ):
        rate = float(printed.split(f"\n{stage} ")[1].split()[0])
        assert rate > 0
    assert re.search(r"\d\s?% .*\d img/s", printed)
    assert re.search(r"--data\.num_workers \d --data\.cache (auto|off) ", printed)


def test_a_folder_smaller_than_a_batch_is_refused(tiny_data, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "data", "--data", str(tiny_data), "--batch_size", "64", "--image_size", "32"])
    assert end.value.code == 2
    assert re.search(r"--batch_size 64 .*\b36\b", capsys.readouterr().err)
