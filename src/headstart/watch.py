"""`headstart watch`: a run seen from another terminal, by the files that it writes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headstart.errors import InputError
from headstart.progress import Display, Status, epoch_line
from headstart.running import has_begun, is_over, read_lines

LOOK_EVERY_S = 0.5
RECENT_STEPS = 20  # whose time, loss and accuracy are shown


@dataclass(frozen=True)
class Seen:
    """What the files say: where the run is, the lines of its epochs, the steps whose lines are there."""

    status: Status
    epochs: list[dict[str, Any]]


def watch_command(run: str, *, once: bool, pause: Callable[[float], None] = time.sleep) -> None:
    """Show a run until it ends. Raises InputError with --once if there is none."""
    path = Path(run)
    if once:
        if not path.is_dir():
            raise InputError(f"{run} does not exist; name the folder of a run, or leave --once out to wait for it")
        print(_summary(path) or _once(path))
        return
    if path.exists() and not path.is_dir():
        raise InputError(f"{run} is a file; name the folder of a run")
    waiting = False
    while not (path / "summary.json").is_file() and not has_begun(path):
        if not waiting:
            print(f"waiting for a run to begin in {run}", flush=True)
            waiting = True
        pause(LOOK_EVERY_S)
    said = 0
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
                display.show(seen.status)
            if finished or over:
                break
            pause(LOOK_EVERY_S)
    print(
        finished
        or f"{run}: the process that wrote it is gone and there is no summary.json; --train.resume auto continues it"
    )


def _once(path: Path) -> str:
    if not has_begun(path):
        raise InputError(f"{path} holds no run; name the folder of one")
    seen = _see(path)
    lines = (
        [] if seen is None else [epoch_line(line, seen.status.epochs) for line in seen.epochs[-1:]] + [str(seen.status)]
    )
    return "\n".join([*lines, *(["no process writes there any more"] if is_over(path) else [])])


def _summary(path: Path) -> str | None:
    """The result in a line, once it is there."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
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
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return Seen(Status.at(0, ends), [line for line in lines if "epoch" in line])
    recent = steps[-RECENT_STEPS:]
    step_s = sum(line.get("time_s", 0.0) for line in recent) / len(recent)
    known = {
        "loss": sum(line["loss"] for line in recent) / len(recent),
        "accuracy": sum(line["accuracy"] for line in recent) / len(recent) if "accuracy" in recent[0] else None,
        "images_per_s": batch / step_s if step_s else None,
        "left_s": (ends[-1] - steps[-1]["step"]) * step_s if step_s else None,
    }
    return Seen(Status.at(steps[-1]["step"], ends, **known), [line for line in lines if "epoch" in line])
