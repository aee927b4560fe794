"""`headstart doctor parity`: a few steps of the user's own configuration, run in many ways that should not matter."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.data.manifest import build_manifest
from headstart.data.samples import Manifest
from headstart.data.sources.open import open_source
from headstart.errors import InputError

TOLERANCE = 1e-5  # of a loss in fp32, for other numbers of processes or backward passes
PRECISION_TOLERANCE = 0.1  # of a loss, for bf16 against fp32
SMALL_LOSS = 0.01  # differences are relative to the loss, but to this at least: below it nothing is left but rounding
VAL_IMAGES = 17  # not divisible by 2 or 3
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Outcome:
    """What a run left: training losses by step, learning rates, right answers by epoch, the final weights' bytes."""

    losses: np.ndarray
    rates: list[dict[str, float]]
    correct: list[tuple[int, int]]
    weights: bytes


@dataclass(frozen=True)
class Check:
    """One way of running, beside the reference. tolerance: of the largest relative loss difference; None: nothing is promised."""

    name: str
    tolerance: float | None
    difference: float
    counts_equal: bool
    rates_equal: bool
    bits_equal: bool

    @property
    def passed(self) -> bool:
        if not (self.rates_equal and np.isfinite(self.difference)):
            return False
        if self.tolerance is None:
            return True
        if self.tolerance == 0:
            return self.bits_equal
        return self.difference <= self.tolerance and (self.counts_equal or self.tolerance > 1e-3)


def check_parity(
    config: RunConfig,
    *,
    steps: int,
    processes: Sequence[int],
    workers: Sequence[int],
    say: Any = print,
    runner_type: "type[Runner] | None" = None,
) -> list[Check]:
    """Run `steps` optimizer steps on a few of the user's images: by one process in fp32 as the reference, then on each of
    `processes` with each of `workers`, with accumulated gradients, interrupted, continued on another number, in bf16.

    runner_type: starts the runs; by default Runner. Raises InputError if the configuration cannot be run at all.
    """
    if config.strategy.name == "probe_then_tune":
        raise InputError("parity compares training steps from the same start; use --strategies fine_tune frozen_head")
    if config.uses_bank:
        say("an exact head has no steps to compare: its features are recomputed here (strategy.features recompute)")
        config = replace(config, strategy=replace(config.strategy, features="recompute"))
    batchnorm_moves = config.strategy.name == "fine_tune" and config.strategy.batchnorm == "train"
    several = None if batchnorm_moves else TOLERANCE
    data, size = config.data, config.train.batch_size
    manifest = build_manifest(open_source(data), data, seed=config.seed)
    for count in processes:
        if size % count:
            raise InputError(
                f"train.batch_size {size} is not divisible by {count} processes; use --processes or another batch size"
            )
    with tempfile.TemporaryDirectory(prefix="headstart-") as name:
        folder = Path(name)
        count = _lay_out(manifest, folder / "images", train_images=2 * size + size // 2)
        epochs = max(2, round(steps * size / count))
        base = replace(
            config,
            data=replace(
                data,
                root=str(folder / "images"),
                num_workers=0,
                split="folder",
                folds=0,
                groups="",
                image_column=None,
                label_column=None,
                split_column=None,
                group_column=None,
            ),
            train=replace(
                config.train, epochs=epochs, seeds=1, folds=0, resume="auto", checkpoint_steps=2, checkpoint_minutes=0.0
            ),
            optim=replace(config.optim, warmup_epochs=min(config.optim.warmup_epochs, epochs / 2)),
            runtime=replace(config.runtime, mixed_precision="no"),
        )
        runner = (runner_type or Runner)(folder, say)
        reference = runner.run("reference: 1 process, fp32, 0 workers", base)
        checks = []

        def compare(title: str, outcome: Outcome, tolerance: float | None) -> None:
            checks.append(_compare(title, reference, outcome, tolerance))

        for number in processes:
            for num_workers in workers:
                if (number, num_workers) != (1, 0):
                    title = f"{number} process{'es' if number > 1 else ''}, {num_workers} workers"
                    varied = replace(base, data=replace(base.data, num_workers=num_workers))
                    compare(title, runner.run(title, varied, processes=number), 0.0 if number == 1 else several)
        if config.train.accumulation == 1 and size % 2 == 0:
            title = "2 backward passes per step"
            varied = replace(base, train=replace(base.train, accumulation=2))
            compare(title, runner.run(title, varied), several)
        title = "interrupted by SIGTERM, continued"
        compare(title, runner.run(title, base, interrupt=signal.SIGTERM), 0.0)
        title = "killed, continued"
        compare(title, runner.run(title, base, interrupt=signal.SIGKILL), 0.0)
        if len(processes) > 1:
            title = f"begun on {processes[-1]} processes, killed, continued on 1"
            compare(title, runner.run(title, base, processes=processes[-1], interrupt=signal.SIGKILL), several)
        title = "bf16"
        varied = replace(base, runtime=replace(base.runtime, mixed_precision="bf16"))
        compare(title, runner.run(title, varied), PRECISION_TOLERANCE)
    return checks


def table_of(checks: Sequence[Check]) -> Any:
    """For rich."""
    from rich.table import Table

    table = Table(
        "beside 1 process, fp32, 0 workers", "largest loss difference", "tolerance", "counts", "weights", "verdict"
    )
    for check in checks:
        tolerance = {None: "none promised", 0.0: "same bits"}.get(
            check.tolerance, f"{check.tolerance:.0e}" if check.tolerance else ""
        )
        table.add_row(
            check.name,
            f"{check.difference:.1e}",
            tolerance,
            "equal" if check.counts_equal else "differ",
            "same bits" if check.bits_equal else "differ",
            "pass" if check.passed else "FAIL",
        )
    return table


class Runner:
    """Runs configurations in processes of their own, each in a run folder of its own."""

    def __init__(self, folder: Path, say: Any) -> None:
        self._folder, self._say, self._number = folder, say, 0

    def run(
        self, title: str, config: RunConfig, *, processes: int = 1, interrupt: signal.Signals | None = None
    ) -> Outcome:
        self._number += 1
        out = self._folder / f"run-{self._number}"
        file = self._folder / f"run-{self._number}.yaml"
        file.write_text(to_yaml(replace(config, out=str(out))), encoding="utf-8")
        started = time.perf_counter()
        if interrupt is not None:
            self._interrupted(file, out, processes, interrupt)
            processes = 1
        done = subprocess.run(
            _command(file, processes), env=_environment(), capture_output=True, text=True, timeout=PATIENCE_S
        )
        if done.returncode:
            said = [
                line for line in done.stderr.splitlines() if line.startswith("headstart:")
            ] or done.stderr.splitlines()
            raise InputError(
                f"{title}: {said[-1].removeprefix('headstart: ') if said else f'exit code {done.returncode}'}"
            )
        self._say(f"{title}: {time.perf_counter() - started:.0f} s")
        return _outcome(out)

    def _interrupted(self, file: Path, out: Path, processes: int, interrupt: signal.Signals) -> None:
        """Begin the run and end all its processes once it has saved twice."""
        process = subprocess.Popen(
            _command(file, processes), env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        give_up = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < give_up:
            if len(list((out / "checkpoints").glob("step_??????"))) >= 2:
                break
            time.sleep(0.02)
        with contextlib.suppress(psutil.NoSuchProcess):
            everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in everyone if interrupt == signal.SIGKILL else everyone[:1]:
                member.send_signal(interrupt)
            psutil.wait_procs(everyone, timeout=PATIENCE_S)
        process.wait(timeout=PATIENCE_S)
        if (out / "summary.json").exists():
            raise InputError("a run was over before it could be interrupted; use more --steps")


def _command(file: Path, processes: int) -> list[str]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    return [sys.executable, *launcher, "-m", "headstart", "train", "--config", str(file)]


def _environment() -> dict[str, str]:
    """Without what a launcher told this process about itself."""
    mine = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in mine}


def _lay_out(manifest: Manifest, folder: Path, *, train_images: int) -> int:
    """Copies of the first images of each class in turn; returns how many train."""
    counts = {}
    for split, wanted in (("train", train_images), ("val", VAL_IMAGES)):
        by_class = {label: [s for s in manifest.of(split) if s.label == label] for label in manifest.classes}
        longest = max(len(samples) for samples in by_class.values())
        in_turn = [samples[i] for i in range(longest) for samples in by_class.values() if i < len(samples)]
        taken = in_turn[: max(wanted, len(manifest.classes))]
        for sample in taken:
            copy = folder / split / sample.label / f"{sample.id}{Path(sample.path).suffix or '.png'}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(manifest.source.read(sample.path))
        counts[split] = len(taken)
    return counts["train"]


def _outcome(out: Path) -> Outcome:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "loss" in row]
    return Outcome(
        np.array([row["loss"] for row in steps]),
        [row["lr"] for row in steps],
        [(row["val_correct"], row["val_n"]) for row in rows if "epoch" in row],
        (out / "model.safetensors").read_bytes(),
    )


def _compare(name: str, reference: Outcome, other: Outcome, tolerance: float | None) -> Check:
    same_length = len(reference.losses) == len(other.losses)
    difference = float("inf")
    if same_length:
        difference = float((np.abs(other.losses - reference.losses) / np.abs(reference.losses).clip(SMALL_LOSS)).max())
    return Check(
        name,
        tolerance,
        difference,
        counts_equal=reference.correct == other.correct,
        rates_equal=reference.rates == other.rates,
        bits_equal=_without_header(reference.weights) == _without_header(other.weights),
    )


def _without_header(weights: bytes) -> bytes:
    """The tensors alone: the header names the configuration, which differs."""
    return weights[8 + int.from_bytes(weights[:8], "little") :]
