"""`headstart doctor parity`: a few steps of a configuration, run in many ways that must give the same result."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
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
from headstart.tensor_file import read_header
from headstart.wording import plural

TOLERANCE = 1e-5  # of a loss in fp32, for other numbers of processes or backward passes
PRECISION_TOLERANCE = 0.1  # of a loss in bf16, against fp32
SMALL_LOSS = 0.01  # differences are relative to the loss or to this, because smaller losses are mostly rounding
VAL_IMAGES = 17  # not divisible by 2 or 3
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Outcome:
    """A finished run: losses and learning rates by step, (correct, n) by epoch, the bytes of the model file."""

    losses: np.ndarray
    rates: list[dict[str, float]]
    correct: list[tuple[int, int]]
    weights: bytes


@dataclass(frozen=True)
class Check:
    """One way of running, compared with the reference. tolerance: of the largest relative difference of a loss; None:
    no limit."""

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
    log: Callable[[str], None] = print,
    runner_type: "type[Runner] | None" = None,
) -> list[Check]:
    """Run `steps` optimizer steps on a few images in many ways, and compare each with one process in fp32.

    The ways: each of `processes` with each of `workers`, accumulated gradients, interrupted and resumed, on the same
    and on another number of processes, and bf16. runner_type: starts the runs; default Runner. Raises InputError for
    a configuration that cannot be run."""
    if config.strategy.name == "probe_then_tune":
        raise InputError("parity compares training steps from the same start; use --strategies fine_tune frozen_head")
    if config.uses_bank:
        log("a head on stored features has no steps to compare; this check uses strategy.features recompute")
        config = replace(config, strategy=replace(config.strategy, features="recompute"))
    size = config.train.batch_size
    for count in processes:
        if size % count:
            raise InputError(
                f"train.batch_size {size} is not divisible by {count} processes; use --processes or another batch size"
            )
    manifest = build_manifest(open_source(config.data), config.data, seed=config.seed)
    with tempfile.TemporaryDirectory(prefix="headstart-") as name:
        folder = Path(name)
        count = _lay_out(manifest, folder / "images", train_images=2 * size + size // 2)
        base = _base(config, folder / "images", epochs=max(2, round(steps * size / count)))
        runner = (runner_type or Runner)(folder, log)
        reference = runner.run("reference: 1 process, fp32, 0 workers", base)
        checks = []
        for way in _ways(base, processes=processes, workers=workers):
            outcome = runner.run(way.title, way.config, processes=way.processes, interrupt=way.interrupt)
            checks.append(_compare(way.title, reference, outcome, way.tolerance))
    return checks


def _base(config: RunConfig, images: Path, *, epochs: int) -> RunConfig:
    no_columns: dict[str, Any] = dict.fromkeys(("image_column", "label_column", "split_column", "group_column"))
    data = replace(config.data, root=str(images), num_workers=0, split="folder", folds=0, groups="", **no_columns)
    once: dict[str, Any] = {"epochs": epochs, "seeds": 1, "folds": 0, "resume": "auto"}
    return replace(
        config,
        data=data,
        train=replace(config.train, checkpoint_steps=2, checkpoint_minutes=0.0, **once),
        runtime=replace(config.runtime, mixed_precision="no"),
    )


@dataclass(frozen=True)
class _Way:
    """A way of running. interrupt: the signal that ends the run, which is then resumed on one process."""

    title: str
    config: RunConfig
    tolerance: float | None
    processes: int = 1
    interrupt: signal.Signals | None = None


def _ways(base: RunConfig, *, processes: Sequence[int], workers: Sequence[int]) -> Iterator[_Way]:
    batchnorm_moves = base.strategy.name == "fine_tune" and base.strategy.batchnorm == "train"
    several = None if batchnorm_moves else TOLERANCE
    for number in processes:
        for num_workers in workers:
            if (number, num_workers) != (1, 0):
                title = f"{plural(number, 'process')}, {plural(num_workers, 'worker')}"
                varied = replace(base, data=replace(base.data, num_workers=num_workers))
                yield _Way(title, varied, 0.0 if number == 1 else several, processes=number)
    if base.train.accumulation == 1 and base.train.batch_size % 2 == 0:
        yield _Way("2 backward passes per step", replace(base, train=replace(base.train, accumulation=2)), several)
    yield _Way("stopped by SIGTERM, resumed", base, 0.0, interrupt=signal.SIGTERM)
    yield _Way("killed, resumed", base, 0.0, interrupt=signal.SIGKILL)
    if len(processes) > 1:
        last = processes[-1]
        title = f"killed on {last} processes, resumed on 1"
        yield _Way(title, base, several, processes=last, interrupt=signal.SIGKILL)
    yield _Way("bf16", replace(base, runtime=replace(base.runtime, mixed_precision="bf16")), PRECISION_TOLERANCE)


class Runner:
    """Runs each configuration in its own processes and run folder."""

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self._folder, self._log, self._number = folder, log, 0

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
            lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
            lines = [line for line in lines if line.startswith("headstart:")] or lines
            raise InputError(f"{title}: {lines[-1].removeprefix('headstart: ')}")
        self._log(f"{title}: {time.perf_counter() - started:.0f} s")
        return _outcome(out)

    def _interrupted(self, file: Path, out: Path, processes: int, interrupt: signal.Signals) -> None:
        """Start the run, and end all its processes once it has saved two checkpoints."""
        process = subprocess.Popen(
            _command(file, processes),
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
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
            raise InputError("a run ended before it could be interrupted; use more --steps")


def _command(file: Path, processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "headstart", "train", "--config", str(file)]


def _environment() -> dict[str, str]:
    """The environment without the variables that a launcher set for this process."""
    mine = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in mine}


def _lay_out(manifest: Manifest, folder: Path, *, train_images: int) -> int:
    """Copy images of all classes in turn; return the number of training images."""
    counts = {}
    for split, wanted in (("train", train_images), ("val", VAL_IMAGES)):
        by_class = ([s for s in manifest.of(split) if s.label == label] for label in manifest.classes)
        in_turn = (sample for samples in zip_longest(*by_class) for sample in samples if sample is not None)
        taken = list(islice(in_turn, max(wanted, len(manifest.classes))))
        for sample in taken:
            copy = folder / split / sample.label / f"{sample.id}{Path(sample.path).suffix or '.png'}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(manifest.source.read(sample.path))
        counts[split] = len(taken)
    return counts["train"]


def _outcome(out: Path) -> Outcome:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "loss" in row]
    model = out / "model.safetensors"
    return Outcome(
        np.array([row["loss"] for row in steps]),
        [row["lr"] for row in steps],
        [(row["val_correct"], row["val_n"]) for row in rows if "epoch" in row],
        model.read_bytes()[read_header(model).start :],  # the header names the configuration, which differs
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
        bits_equal=reference.weights == other.weights,
    )
