"""headstart doctor: the report on the machine, and parity: one configuration run in many ways with the same result."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
from support.runs import small

from headstart.cli.main import main
from headstart.config import RunConfig
from headstart.diagnostics import environment
from headstart.diagnostics.parity import Check, Outcome, Runner, _compare, check_parity


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_the_doctor_prints_every_finding(monkeypatch, capsys) -> None:
    monkeypatch.setattr(environment, "MEASURE_S", 0.05)
    assert exit_code("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["headstart"]
    assert found["device"] == "cpu"
    assert "gloo" in found["process groups"]
    del found["warnings"]
    assert exit_code("doctor") == 0
    printed = capsys.readouterr().out
    for name in found:
        assert f"\n{name}: " in f"\n{printed}"


def test_the_doctor_warns() -> None:
    found = {
        "shared memory, GiB": 0.06,
        "bf16 against fp32, speed of a convolution": 0.4,
        "precision by auto": "bf16 (why)",
        "cores": {"usable": 1, "of the machine": 8},
        "free memory, GiB": 0.5,
    }
    warnings = " ".join(environment.warnings_of(found))
    for fragment in ("--shm-size", "--runtime.mixed_precision no", "1 of 8", "--train.batch_size"):
        assert fragment in warnings


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


def test_a_strategy_that_computes_its_start_is_refused(tiny_data, capsys) -> None:
    assert exit_code("doctor", "parity", "--data.root", tiny_data, "--strategy.name", "probe_then_tune") == 2
    assert "--strategies fine_tune frozen_head" in capsys.readouterr().err


def test_processes_that_do_not_divide_the_batch_are_refused(tiny_data, capsys) -> None:
    options = ("--data.root", tiny_data, "--train.batch_size", 8, "--processes", 1, 3)
    assert exit_code("doctor", "parity", *options) == 2
    error = capsys.readouterr().err
    for fragment in ("train.batch_size 8", "3 processes", "--processes"):
        assert fragment in error


Way = tuple[int, int, int, str, signal.Signals | None]  # processes, workers, accumulation, precision, interrupted by


def recorder(different: Way | None = None) -> tuple[list[Way], type[Runner]]:
    """A list that fills with the ways that were run, and a runner that trains nothing: all outcomes are the same, but
    for one way that is different by 1e-3 and in its bits."""
    ways: list[Way] = []

    class Recorder(Runner):
        def run(self, title: str, config: RunConfig, *, processes: int = 1, interrupt=None) -> Outcome:
            way = (
                processes,
                config.data.num_workers,
                config.train.accumulation,
                config.runtime.mixed_precision,
                interrupt,
            )
            ways.append(way)
            return outcome(1.0, 0.5005, weights=b"x") if way == different else outcome(1.0, 0.5)

    return ways, Recorder


REFERENCE: Way = (1, 0, 1, "no", None)
TOLERANCES: dict[Way, float] = {  # of the loss; 0: the same bits
    (1, 2, 1, "no", None): 0,
    (2, 0, 1, "no", None): 1e-5,
    (2, 2, 1, "no", None): 1e-5,
    (1, 0, 2, "no", None): 1e-5,
    (1, 0, 1, "no", signal.SIGTERM): 0,
    (1, 0, 1, "no", signal.SIGKILL): 0,
    (2, 0, 1, "no", signal.SIGKILL): 1e-5,
    (1, 0, 1, "bf16", None): 0.1,
}


@pytest.fixture
def config(tiny_data, tmp_path) -> RunConfig:
    """Batch statistics do not depend on the number of processes where BatchNorm is frozen."""
    config = small(tiny_data, tmp_path / "run")
    return replace(config, strategy=replace(config.strategy, batchnorm="freeze"))


def test_parity_runs_every_way_and_compares_it_with_its_tolerance(config) -> None:
    ways, runner = recorder()
    checks = check_parity(config, steps=6, processes=[1, 2], workers=[0, 2], runner_type=runner)
    assert ways == [REFERENCE, *TOLERANCES]
    assert [check.tolerance for check in checks] == list(TOLERANCES.values())
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("way", [way for way, tolerance in TOLERANCES.items() if tolerance < 1e-3])
def test_parity_fails_exactly_where_a_way_is_different(way: Way, config) -> None:
    _, runner = recorder(different=way)
    checks = check_parity(config, steps=6, processes=[1, 2], workers=[0, 2], runner_type=runner)
    assert [check.passed for check in checks] == [other != way for other in TOLERANCES]


class TwoRuns(Runner):
    """Really runs the reference, and the way that is killed on two processes and resumed on one. All other
    ways take the outcome of the reference."""

    reference: Outcome | None = None

    def run(self, title: str, config: RunConfig, *, processes: int = 1, interrupt=None) -> Outcome:
        if self.reference is None:
            self.reference = super().run(title, config)
        elif processes == 2 and interrupt is not None:
            return super().run(title, config, processes=processes, interrupt=interrupt)
        return self.reference


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_on_two_processes_killed_and_continued_on_one_equals_the_reference(config) -> None:
    lines: list[str] = []
    checks = check_parity(config, steps=16, processes=[1, 2], workers=[0], log=lines.append, runner_type=TwoRuns)
    assert len(lines) == 2, "two runs, one line each"
    assert "2 processes" in lines[1]
    assert all(check.passed and check.difference <= 1e-5 for check in checks)


@pytest.mark.extended
@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_every_way_of_running_equals_the_reference(tiny_data, capsys) -> None:
    options = {
        "data.root": tiny_data,
        "model.weights": "bundled",
        "data.image_size": 32,
        "train.batch_size": 8,
        "strategy.batchnorm": "freeze",
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    assert exit_code("doctor", "parity", *arguments, "--steps", 8, "--processes", 2, "--workers", 0) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    for row in ("2 processes, 0 workers", "2 backward passes", "SIGTERM", "killed", "bf16"):
        assert row in printed
    assert printed.count("same bits │ pass") == 2  # interrupted and killed


@pytest.mark.parametrize(("passes", "expected"), [(True, 0), (False, 1)])
def test_both_strategies_are_in_one_table_and_the_exit_code_is_1_if_one_fails(
    passes: bool, expected: int, tiny_data, capsys, monkeypatch
) -> None:
    strategies = []

    def check_parity(config, **options):
        strategies.append((config.strategy.name, config.strategy.features))
        passed = passes or config.strategy.name == "frozen_head"
        return [Check("2 processes", 1e-5, 0.0 if passed else 1.0, True, True, False)]

    monkeypatch.setattr("headstart.diagnostics.parity.check_parity", check_parity)
    options = ("--data.root", tiny_data, "--strategies", "fine_tune", "frozen_head")
    assert exit_code("doctor", "parity", *options) == expected
    assert strategies == [("fine_tune", "recompute"), ("frozen_head", "recompute")]
    printed = capsys.readouterr().out
    assert "fine_tune 2 processes" in printed
    assert "frozen_head 2 processes" in printed
