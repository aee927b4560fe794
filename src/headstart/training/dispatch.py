"""Which assembly a configuration asks for: the loop over epochs, or the head solved for on the feature bank."""

import contextlib
import os
from dataclasses import asdict
from pathlib import Path

from headstart.config import RunConfig, flat, may_change
from headstart.errors import InputError


def run(config: RunConfig) -> Path:
    """Train as configured, once or several times, and return the run folder. Raises InputError and Stopped."""
    if not config.runtime.quiet:
        return _run(config)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):  # warnings go to the other stream
        path = _run(config)
    if os.environ.get("RANK", "0") == "0":
        print(path)
    return path


def _check_same(config: RunConfig, folder: Path) -> None:
    """Raise InputError if the finished run is of another recipe. What a run chooses itself where nothing is asked for may differ."""
    from headstart.config_io import parse_train

    then = flat(asdict(parse_train(["--config", str(folder / "config.yaml")])))
    now = flat(asdict(config))
    changed = [
        f"{name} {value} (was {then[name]})"
        for name, value in now.items()
        if value != then[name] and value is not None and not may_change(name)
    ]
    if changed:
        raise InputError(
            f"--out {folder} is a finished run of another recipe: {', '.join(changed)}; train in another --out"
        )


def _run(config: RunConfig) -> Path:
    if config.train.seeds > 1 or config.train.folds:
        from headstart.training.repeats import run_repeats

        return run_repeats(config, _run_once)
    return _run_once(config)


def _run_once(config: RunConfig, *, last: bool = True) -> Path:
    """last: whether the processes may part afterwards.

    A finished run that is to be continued is left as it is: a job that is queued again has nothing to do."""
    if config.train.resume == "auto" and config.out and (Path(config.out) / "summary.json").exists():
        _check_same(config, Path(config.out))
        if os.environ.get("RANK", "0") == "0":
            print(f"{config.out} is finished, so there is nothing to continue; train in another --out")
        return Path(config.out)
    if config.uses_bank and config.strategy.name == "frozen_head":
        # without torchvision, datasets and evaluate: importing them takes longer than the run
        from headstart.training.on_features import run as solve_for_head

        return solve_for_head(config, last=last)
    from headstart.training.by_epochs import run as train_by_epochs

    return train_by_epochs(config, last=last)
