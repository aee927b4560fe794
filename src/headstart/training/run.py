"""Train as configured: once or several times, on images or on cached features."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from headstart.config import RunConfig, flat, may_change
from headstart.errors import InputError, Stopped
from headstart.launcher import is_first_process
from headstart.messages import LOG, ProgressStyle
from headstart.runs.lock import finished_in_words, is_finished, resume_command
from headstart.runs.summary import Summary
from headstart.runtime.hardware import LoadOfOthers
from headstart.training.early_checks import check_early
from headstart.training.small_data import fit_batch_size


def run(config: RunConfig, *, progress: ProgressStyle = "terminal") -> Path:
    """Train as configured, once or several times, and return the run folder. progress: how it is shown, besides the
    messages that are logged. Raises InputError and Stopped."""
    check_early(config)
    if config.train.seeds > 1 or config.train.folds:
        from headstart.training.repeats import run_repeats

        return run_repeats(config, partial(run_once, progress=progress))
    return run_once(config, progress=progress)


def run_once(config: RunConfig, *, progress: ProgressStyle = "terminal", last: bool = True) -> Path:
    """One run, from its start to its end; a finished run that is to be resumed is left as it is.

    last: whether the processes may end afterwards.
    """
    if config.train.resume == "auto" and config.out and is_finished(Path(config.out)):
        _check_same(config, Path(config.out))
        if is_first_process():
            LOG.info(finished_in_words(Path(config.out)))
        return Path(config.out)
    load = LoadOfOthers()
    from headstart.runtime.processes import end_run
    from headstart.training.finish import finish
    from headstart.training.session import start

    with start(config, progress=progress, load=load) as session:
        try:
            if session.config.trains_on_features:
                from headstart.training.train_head import train_head

                result = train_head(session)
            else:
                from headstart.training.train_network import train_network

                result = train_network(session)
        except Stopped as stop:
            session.leave_to_resume()
            message = f"{stop}; to continue: {resume_command(session.path)}"
            raise Stopped(message, signal_name=stop.signal_name) from None
        finish(session, result)
        end_run(session.accelerator, last=last)
    return session.path


def _as_trained(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with the batch size that the finished run used for these settings."""
    summary = Summary.read(folder)
    processes = 1 if config.trains_on_features else summary.world_size
    return fit_batch_size(config, num_images=summary.train["n"], num_processes=processes)


def _check_same(config: RunConfig, folder: Path) -> None:
    """Raise InputError if the finished run has other settings. Those that a run chooses itself may differ if they
    are not set."""
    from headstart.config_io import load_config

    then = flat(asdict(load_config([folder / "config.yaml"])))
    if config.trains_by_epochs and config.train.batch_size > then["train.batch_size"]:
        config = _as_trained(config, folder)
    now = flat(asdict(config))
    changed = [
        f"{name} {value} (was {then[name]})"
        for name, value in now.items()
        if value != then[name] and value not in (None, "auto") and not may_change(name)
    ]
    if changed:
        raise InputError(
            f"--out {folder} already contains a finished run with different settings: {', '.join(changed)}; train in "
            "another --out"
        )
