"""Which assembly a configuration asks for: the loop over epochs, or the head solved for on the feature bank."""

from pathlib import Path

from headstart.config import RunConfig


def run(config: RunConfig) -> Path:
    """Train as configured and return the run folder. Raises InputError and Stopped."""
    if config.uses_bank and config.strategy.name == "frozen_head":
        # without torchvision, datasets and evaluate: importing them takes longer than the run
        from headstart.probe_run import run as solve_for_head

        return solve_for_head(config)
    from headstart.training import run as train_by_epochs

    return train_by_epochs(config)
