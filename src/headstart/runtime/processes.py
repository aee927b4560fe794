"""Communication between the processes of a run: results, errors, flags."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from headstart.errors import InputError

if TYPE_CHECKING:  # prediction does not need accelerate, so it is imported only in functions
    from accelerate import Accelerator


_T = TypeVar("_T")


def on_main(accelerator: "Accelerator", work: Callable[[], _T]) -> _T:
    """Call `work` in the main process and return its result in all processes. If it raises, all processes raise: the
    main process the same exception, the others InputError with its message."""
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]  # result, message of the exception
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as raised:
            error, outcome[1] = raised, str(raised)
    broadcast_object_list(outcome)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise InputError(outcome[1])
    result: _T = outcome[0]
    return result


def from_all(accelerator: "Accelerator", value: _T) -> list[_T]:
    """The values of all processes, by rank, in every process."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    values: list[_T] = gather_object([value])
    return values


def on_each_host(accelerator: "Accelerator", work: Callable[[], None]) -> None:
    """Call `work` in the first process of each host while the other processes wait. If it raises on one host, all
    processes raise: there the same exception, elsewhere InputError with its message."""
    error: Exception | None = None
    if accelerator.is_local_main_process:
        try:
            work()
        except Exception as raised:
            error = raised
    messages = [text for text in from_all(accelerator, None if error is None else str(error)) if text is not None]
    if error is not None:
        raise error
    if messages:
        raise InputError(messages[0])


def agree(accelerator: "Accelerator", *flags: bool) -> list[bool]:
    """For each flag, whether it is true in any process; the same list in all processes."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(counts, "sum").tolist()]


def end_run(accelerator: "Accelerator", *, last: bool) -> None:
    """Wait for all processes. last: also leave the process group, which the next run would need."""
    accelerator.wait_for_everyone()
    if last:
        accelerator.end_training()
