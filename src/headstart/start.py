"""Which assembly a configuration asks for: the loop over epochs, or the head solved for on the feature bank."""

import contextlib
import os
from pathlib import Path

from headstart.config import RunConfig


def run(config: RunConfig) -> Path:
    """Train as configured and return the run folder. Raises InputError and Stopped."""
    if not config.runtime.quiet:
        return _run(config)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):  # warnings go to the other stream
        path = _run(config)
    if os.environ.get("RANK", "0") == "0":
        print(path)
    return path


def _run(config: RunConfig) -> Path:
    """A finished run that is to be continued is left as it is: a job that is queued again has nothing to do."""
    if config.train.resume == "auto" and config.out and (Path(config.out) / "summary.json").exists():
        if os.environ.get("RANK", "0") == "0":
            print(f"{config.out} is finished, so there is nothing to continue; train in another --out")
        return Path(config.out)
    if config.uses_bank and config.strategy.name == "frozen_head":
        # without torchvision, datasets and evaluate: importing them takes longer than the run
        from headstart.probe_run import run as solve_for_head

        return solve_for_head(config)
    from headstart.training import run as train_by_epochs

    return train_by_epochs(config)
