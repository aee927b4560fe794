"""What a run changes in its recipe if there are few training images."""

from dataclasses import replace

from headstart.config import RunConfig
from headstart.errors import InputError
from headstart.wording import plural


def fit_batch_size(config: RunConfig, *, num_images: int, num_processes: int = 1) -> RunConfig:
    """The configuration with a batch size that the training images can fill: if they cannot fill train.batch_size, the
    largest one that the processes and the accumulation divide evenly.

    Gradient accumulation is reduced first where a backward pass of a process would get a single image. Raises
    InputError if there are fewer images than processes."""
    train = config.train
    if train.batch_size <= num_images:
        return config
    if num_images < num_processes:
        raise InputError(
            f"{plural(num_images, 'training image')} cannot fill a batch on {num_processes} processes; use at most "
            f"{plural(num_images, 'process', 'processes')}"
        )
    accumulation = max(1, min(train.accumulation, num_images // (2 * num_processes)))
    parts = num_processes * accumulation
    return replace(config, train=replace(train, batch_size=num_images // parts * parts, accumulation=accumulation))


def describe_batch_size(config: RunConfig, fitted: RunConfig, *, num_images: int) -> str:
    """The warning about a batch size that `fit_batch_size` has reduced; empty if it is as configured."""
    before, now = config.train, fitted.train
    if now.batch_size == before.batch_size:
        return ""
    also = f" and train.accumulation is {now.accumulation}" if now.accumulation != before.accumulation else ""
    return (
        f"train.batch_size is {now.batch_size} instead of {before.batch_size}{also}, because there are only "
        f"{plural(num_images, 'training image')}"
    )
