"""What the processes of a run exchange: results, failures, requests to stop."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from headstart.errors import InputError

if TYPE_CHECKING:  # imported where it is used: a model is loaded and asked without it
    from accelerate import Accelerator


_T = TypeVar("_T")


def on_main(accelerator: "Accelerator", work: Callable[[], _T]) -> _T:
    """The main process's result in every process. What it raises ends every process, so that none waits."""
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as raised:
            error, outcome[1] = raised, str(raised)
    from accelerate.utils import broadcast_object_list

    broadcast_object_list(outcome)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise InputError(outcome[1])
    result: _T = outcome[0]
    return result


def from_all(accelerator: "Accelerator", value: _T) -> list[_T]:
    """Every process's value, by rank, in every process."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[_T] = gather_object([value])
    return found


def on_each_host(accelerator: "Accelerator", work: Callable[[], None]) -> None:
    """Do the work in the first process of each host, while the others wait. All raise InputError if it fails on one."""
    error: Exception | None = None
    if accelerator.is_local_main_process:
        try:
            work()
        except Exception as raised:
            error = raised
    failures = [text for text in from_all(accelerator, None if error is None else str(error)) if text is not None]
    if error is not None:
        raise error
    if failures:
        raise InputError(failures[0])


def agree(accelerator: "Accelerator", *flags: bool) -> list[bool]:
    """For each flag, whether any process has raised it; the same answer everywhere."""
    if accelerator.num_processes == 1:
        return list(flags)
    raised = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [value > 0 for value in accelerator.reduce(raised, "sum").tolist()]


def finish(accelerator: "Accelerator", *, last: bool) -> None:
    """The end of a run. last: the processes part; otherwise they stay together for the next run, and trackers end alone."""
    accelerator.wait_for_everyone()
    if last:
        accelerator.end_training()
    else:
        for tracker in accelerator.trackers:
            tracker.finish()
