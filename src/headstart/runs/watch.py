"""`headstart watch`: follows a run from another terminal, through the files that the run writes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from headstart.config_io import repeated_runs
from headstart.errors import InputError
from headstart.runs.files import read_metrics
from headstart.runs.lock import SUMMARY, has_begun, is_over, resume_command
from headstart.runs.progress import Status, epoch_line
from headstart.runtime.progress import Display
from headstart.wording import headline

POLL_S = 0.5
RECENT_STEPS = 20  # whose mean time, loss and accuracy are shown


@dataclass(frozen=True)
class Progress:
    """validating: all steps of an epoch are done and its line is not written yet."""

    status: Status
    epochs: list[dict[str, Any]]
    validating: bool


def watch_command(run: str, *, once: bool, pause: Callable[[float], None] = time.sleep) -> None:
    """Follow a run, or repeated runs, until the end. Raises InputError if `run` is a file, and with `once` if there is
    no run."""
    path = Path(run)
    if path.exists() and not path.is_dir():
        raise InputError(f"{run} is a file; name a run folder")
    if once:
        if not path.is_dir():
            raise InputError(f"{run} does not exist; name a run folder, or omit --once to wait for the run")
        print("\n".join(_current_lines(path)))
        return
    if not _exists(path):
        print(f"waiting for a run in {run}", flush=True)
    while not _exists(path):
        pause(POLL_S)
    follow = _follow_all if repeated_runs(path) else _follow
    follow(path, pause)


def _follow_all(path: Path, pause: Callable[[float], None]) -> None:
    """Follow repeated runs: the first one in progress, then the next one."""
    followed: set[str] = set()
    while True:
        over = _result(path) is not None or is_over(path)
        names = repeated_runs(path)
        waiting = [name for name in names if name not in followed and _exists(path / name)]
        # a run that was interrupted will be resumed, and is followed then
        name = next((name for name in waiting if _result(path / name) or not is_over(path / name)), None)
        if name is not None:
            followed.add(name)
            print(f"{name}: {names.index(name) + 1} of {len(names)}", flush=True)
            if done := _result(path / name):
                print(done, flush=True)
            else:
                _follow(path / name, pause)
        elif over:
            break
        else:
            pause(POLL_S)
    print(_outcome(path))


def _follow(path: Path, pause: Callable[[float], None]) -> None:
    num_printed, step, since = 0, -1, 0.0
    progress = _read_progress(path)
    with Display(progress.status if progress else Status(0, 1, 1, 1)) as display:
        while True:
            over = _result(path) is not None or is_over(path)  # before the lines, so that the last ones are read
            progress = _read_progress(path)
            if progress is not None:
                status = progress.status
                num_printed = min(num_printed, len(progress.epochs))  # a resumed run repeats some epochs
                for line in progress.epochs[num_printed:]:
                    display.print(epoch_line(line, status.epochs))
                num_printed = len(progress.epochs)
                if status.step != step or progress.validating:
                    step, since = status.step, time.perf_counter()
                if status.left_s is not None:  # counts down between the steps that are logged
                    status = replace(status, left_s=max(0.0, status.left_s - (time.perf_counter() - since)))
                display.show(status)
            if over:
                break
            pause(POLL_S)
    print(_outcome(path), flush=True)


def _outcome(path: Path) -> str:
    return _result(path) or (
        f"{path}: the run was interrupted: its process has ended and there is no {SUMMARY}; to continue: "
        f"{resume_command(path)}"
    )


def _exists(path: Path) -> bool:
    return has_begun(path) or (path / "summary.json").is_file() or bool(repeated_runs(path))


def _current_lines(path: Path) -> list[str]:
    """The result of a run, or its last epoch and current step. Raises InputError if there is no run."""
    if done := _result(path):
        return [done]
    names = repeated_runs(path)
    if not names and not has_begun(path):
        raise InputError(f"{path} does not contain a run; name a run folder")
    if begun := [name for name in names if _exists(path / name)]:
        name = next((name for name in begun if _result(path / name) is None), begun[-1])
        lines = [f"{name}: {names.index(name) + 1} of {len(names)}", *_lines_of_one(path / name)]
    else:
        lines = [f"none of {len(names)} runs has started"] if names else _lines_of_one(path)
    return [*lines, "the process that wrote here has ended"] if is_over(path) else lines


def _lines_of_one(path: Path) -> list[str]:
    if done := _result(path):
        return [done]
    progress = _read_progress(path)
    if progress is None:
        return []
    return [*(epoch_line(line, progress.status.epochs) for line in progress.epochs[-1:]), str(progress.status)]


def _result(path: Path) -> str | None:
    """The result in one line, None as long as there is no summary.json."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "repeats" in summary:
        spread = summary["spread"]["accuracy"]
        result = (
            f"{len(summary['runs'])} {summary['repeats']}, mean accuracy {spread['mean']:.1%}, "
            f"from {spread['lowest']:.1%} to {spread['highest']:.1%}"
        )
    else:
        result = headline(summary["val"])
    return f"{path}: finished, {result}, {summary['wall_s']:.0f} s"


def _read_progress(path: Path) -> Progress | None:
    """None while the run folder is being created. Raises InputError if a file is damaged."""
    import pyarrow.parquet as pq

    try:
        train = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))["train"]
        splits = pq.read_table((path / "manifest.parquet").absolute(), columns=["split"]).column("split").to_pylist()
    except FileNotFoundError:
        return None
    count, batch_size = splits.count("train"), train["batch_size"]
    ends = [-(-epoch * count // batch_size) for epoch in range(1, train["epochs"] + 1)]
    lines = read_metrics(path / "metrics.jsonl") if (path / "metrics.jsonl").is_file() else []
    steps, epochs = [line for line in lines if "loss" in line], [line for line in lines if "epoch" in line]
    if not steps:
        return Progress(Status.at(0, ends), epochs, validating=False)
    step, recent = steps[-1]["step"], steps[-RECENT_STEPS:]
    step_s = sum(line.get("time_s", 0.0) for line in recent) / len(recent)
    status = Status.at(
        step,
        ends,
        loss=sum(line["loss"] for line in recent) / len(recent),
        accuracy=sum(line["accuracy"] for line in recent) / len(recent) if "accuracy" in recent[0] else None,
        images_per_s=batch_size / step_s if step_s else None,
        left_s=(ends[-1] - step) * step_s if step_s else None,
    )
    return Progress(status, epochs, validating=step in ends and (not epochs or epochs[-1]["step"] < step))
