"""`headstart watch`: a run seen from another terminal, by the files that it writes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from headstart.errors import InputError
from headstart.runs.lock import has_begun, is_over, read_lines, repeated_runs
from headstart.runs.progress import Display, Status, epoch_line

LOOK_EVERY_S = 0.5
RECENT_STEPS = 20  # whose time, loss and accuracy are shown


@dataclass(frozen=True)
class Seen:
    """What the files say: where the run is, the lines of its epochs; validating: all steps of an epoch are done and its line is
    not there yet."""

    status: Status
    epochs: list[dict[str, Any]]
    validating: bool


def watch_command(run: str, *, once: bool, pause: Callable[[float], None] = time.sleep) -> None:
    """Show a run, or repeated ones, until the end. Raises InputError with --once if there is none."""
    path = Path(run)
    if once:
        if not path.is_dir():
            raise InputError(f"{run} does not exist; name the folder of a run, or leave --once out to wait for it")
        print(_summary(path) or _once(path))
        return
    if path.exists() and not path.is_dir():
        raise InputError(f"{run} is a file; name the folder of a run")
    waiting = False
    while not (path / "summary.json").is_file() and not has_begun(path) and not repeated_runs(path):
        if not waiting:
            print(f"waiting for a run to begin in {run}", flush=True)
            waiting = True
        pause(LOOK_EVERY_S)
    if repeated_runs(path):
        _follow_all(path, pause)
    else:
        _follow(path, pause)


def _follow_all(path: Path, pause: Callable[[float], None]) -> None:
    """Repeated runs: the first that goes on, then the next one."""
    followed: set[str] = set()
    while True:
        finished, over = _summary(path), is_over(path)
        names = repeated_runs(path)
        begun = [name for name in names if name not in followed and _is_there(path / name)]
        begun = [
            name for name in begun if _summary(path / name) or not is_over(path / name)
        ]  # else it will be continued
        if begun:
            name = begun[0]
            followed.add(name)
            print(f"{name}: {names.index(name) + 1} of {len(names)}", flush=True)
            if done := _summary(path / name):
                print(done, flush=True)
            else:
                _follow(path / name, pause)
        elif finished or over:
            break
        else:
            pause(LOOK_EVERY_S)
    print(finished or _gone(path))


def _follow(path: Path, pause: Callable[[float], None]) -> None:
    """A single run."""
    said, step, since = 0, -1, 0.0
    seen = _see(path)
    with Display(seen.status if seen else Status(0, 1, 1, 1), speaks=True) as display:
        while True:
            finished, over = _summary(path), is_over(path)  # before the lines, so that the last ones are read
            seen = _see(path)
            if seen is not None:
                said = min(said, len(seen.epochs))  # a run that was continued does some epochs again
                for line in seen.epochs[said:]:
                    display.say(epoch_line(line, seen.status.epochs))
                said = len(seen.epochs)
                if seen.status.step != step or seen.validating:
                    step, since = seen.status.step, time.perf_counter()
                display.show(_later(seen.status, time.perf_counter() - since))
            if finished or over:
                break
            pause(LOOK_EVERY_S)
    print(finished or _gone(path), flush=True)


def _later(status: Status, passed_s: float) -> Status:
    """The status when so much time has passed since it was seen."""
    return status if status.left_s is None else replace(status, left_s=max(0.0, status.left_s - passed_s))


def _gone(path: Path) -> str:
    return f"{path}: the process that wrote it is gone and there is no summary.json; --train.resume auto continues it"


def _is_there(path: Path) -> bool:
    return has_begun(path) or (path / "summary.json").is_file()


def _once(path: Path) -> str:
    over = ["no process writes there any more"] if is_over(path) else []
    if names := repeated_runs(path):
        begun = [name for name in names if _is_there(path / name)]
        if not begun:
            return "\n".join([f"none of {len(names)} runs has begun", *over])
        name = next((name for name in begun if _summary(path / name) is None), begun[-1])
        return "\n".join(
            [
                f"{name}: {names.index(name) + 1} of {len(names)}",
                *(_summary(path / name) or _where(path / name)).split("\n"),
                *over,
            ]
        )
    if not has_begun(path):
        raise InputError(f"{path} holds no run; name the folder of one")
    return "\n".join([*filter(None, [_where(path)]), *over])


def _where(path: Path) -> str:
    """The last epoch that was measured, and where the run is now."""
    seen = _see(path)
    if seen is None:
        return ""
    return "\n".join([*(epoch_line(line, seen.status.epochs) for line in seen.epochs[-1:]), str(seen.status)])


def _summary(path: Path) -> str | None:
    """The result in a line, once it is there."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "repeats" in summary:
        spread = summary["spread"]["accuracy"]
        line = (
            f"{path}: finished, {len(summary['runs'])} {summary['repeats']}, accuracy {spread['mean']:.1%} on average, "
            f"{spread['lowest']:.1%} to {spread['highest']:.1%}, {summary['wall_s']:.0f} s"
        )
        return line.replace("%", " %")
    val = summary["val"]
    low, high = val["accuracy_ci95"]
    return (
        f"{path}: finished, accuracy {val['accuracy']:.1%} [{low:.1%}, {high:.1%}], {val['correct']} of {val['n']}, "
        f"{summary['wall_s']:.0f} s".replace("%", " %")
    )


def _see(path: Path) -> Seen | None:
    """None while the run folder is being laid out. Raises InputError for one that is damaged."""
    import pyarrow.parquet as pq

    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        splits = pq.read_table(path / "manifest.parquet", columns=["split"]).column("split").to_pylist()
    except FileNotFoundError:
        return None
    train = config["train"]
    count, batch = splits.count("train"), train["batch_size"]
    ends = [-(-epoch * count // batch) for epoch in range(1, train["epochs"] + 1)]
    lines = read_lines(path / "metrics.jsonl") if (path / "metrics.jsonl").is_file() else []
    steps, epochs = [line for line in lines if "loss" in line], [line for line in lines if "epoch" in line]
    if not steps:
        return Seen(Status.at(0, ends), epochs, validating=False)
    recent = steps[-RECENT_STEPS:]
    step_s = sum(line.get("time_s", 0.0) for line in recent) / len(recent)
    known = {
        "loss": sum(line["loss"] for line in recent) / len(recent),
        "accuracy": sum(line["accuracy"] for line in recent) / len(recent) if "accuracy" in recent[0] else None,
        "images_per_s": batch / step_s if step_s else None,
        "left_s": (ends[-1] - steps[-1]["step"]) * step_s if step_s else None,
    }
    step = steps[-1]["step"]
    validating = step in ends and (not epochs or epochs[-1]["step"] < step)
    return Seen(Status.at(step, ends, **known), epochs, validating)
