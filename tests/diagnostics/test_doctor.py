"""The two examinations: of the machine, and of the promise that a run stays the same run."""

import json

import numpy as np
import pytest

from headstart import cli, doctor
from headstart.parity import Check, Outcome, _compare


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_the_doctor_says_what_there_is(monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, "MEASURE_S", 0.05)
    assert exit_code("doctor") == 0
    said = capsys.readouterr().out
    for name in ("device: cpu", "threads of torch: ", "bf16 against fp32", "process groups: gloo", "free memory, GiB"):
        assert name in said
    assert exit_code("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["versions"]["headstart"]


def test_the_doctor_warns() -> None:
    found = {
        "shared memory, GiB": 0.06,
        "bf16 against fp32, speed of a convolution": 0.4,
        "precision by auto": "bf16 (why)",
        "cores": {"usable": 1, "of the machine": 8},
        "free memory, GiB": 0.5,
    }
    said = " ".join(doctor.warnings_of(found))
    for part in ("--shm-size", "--runtime.mixed_precision no", "only 1 of 8 cores", "--train.batch_size"):
        assert part in said


def outcome(*losses: float, rate: float = 0.1, correct: int = 5, weights: bytes = b"w") -> Outcome:
    header = b"{}" + b" " * 6
    blob = len(header).to_bytes(8, "little") + header + weights
    return Outcome(np.array(losses), [{"head": rate}] * len(losses), [(correct, 9)], blob)


@pytest.mark.parametrize(
    ("other", "tolerance", "passes"),
    [
        (outcome(1.0, 0.5), 0.0, True),
        (outcome(1.0, 0.5, weights=b"x"), 0.0, False),
        (outcome(1.0, 0.5 + 1e-7, weights=b"x"), 1e-5, True),
        (outcome(1.0, 0.5 + 1e-4), 1e-5, False),
        (outcome(1.0, 0.5, rate=0.2), 1e-5, False),
        (outcome(1.0, 0.5, correct=6), 1e-5, False),
        (outcome(1.0), 1e-5, False),
        (outcome(1.0, float("nan")), 1e-5, False),
        (outcome(1.0, 0.6), None, True),
        (outcome(1.0, 0.6, rate=0.2), None, False),
        (outcome(1.0), None, False),
    ],
)
def test_a_check_passes_only_within_its_tolerance(other: Outcome, tolerance: float | None, passes: bool) -> None:
    check = _compare("x", outcome(1.0, 0.5), other, tolerance)
    assert isinstance(check, Check)
    assert check.passed is passes


def test_a_start_that_is_computed_has_no_reference(tiny_data, capsys) -> None:
    assert exit_code("doctor", "parity", "--data.root", tiny_data, "--strategy.name", "probe_then_tune") == 2
    assert "--strategies fine_tune frozen_head" in capsys.readouterr().err


def test_processes_that_do_not_divide_the_batch_are_refused(tiny_data, capsys) -> None:
    options = ("--data.root", tiny_data, "--train.batch_size", 8, "--processes", 1, 3)
    assert exit_code("doctor", "parity", *options) == 2
    assert "train.batch_size 8 is not divisible by 3 processes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_the_same_run_many_ways(tiny_data, capsys) -> None:
    options = {"data.root": tiny_data, "model.weights": "bundled", "data.image_size": 32, "train.batch_size": 8,
               "strategy.batchnorm": "freeze"}  # fmt: skip
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    assert exit_code("doctor", "parity", *arguments, "--steps", 6, "--processes", 2, "--workers", 0) == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    for row in (
        "2 processes, 0 workers",
        "2 backward passes per step",
        "interrupted by SIGTERM",
        "killed, continued",
        "bf16",
    ):
        assert row in said
    assert said.count("same bits │ pass") == 2  # interrupted and killed


def test_both_strategies_in_one_table(tiny_data, capsys, monkeypatch) -> None:
    asked = []

    def check_parity(config, **options):
        asked.append((config.strategy.name, config.strategy.features))
        return [Check("2 processes", 1e-5, 0.0, True, True, False)]

    monkeypatch.setattr("headstart.parity.check_parity", check_parity)
    options = ("--data.root", tiny_data, "--strategies", "fine_tune", "frozen_head")
    assert exit_code("doctor", "parity", *options) == 0
    assert asked == [("fine_tune", "recompute"), ("frozen_head", "recompute")]
    said = capsys.readouterr().out
    assert "fine_tune 2 processes" in said
    assert "frozen_head 2 processes" in said
