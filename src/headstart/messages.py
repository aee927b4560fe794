"""Messages of the library: what a run does as INFO, what its user should know as WARNING, through `logging`.

The command line prints them (`cli/output.py`). In Python, `logging.basicConfig(level="INFO")` shows them."""

import logging
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from accelerate import Accelerator

ProgressStyle: TypeAlias = Literal["auto", "terminal", "silent"]
"""How the progress of a run is shown. terminal: a bar in a terminal, else a line every few seconds. auto: a bar in a
terminal or a notebook, else nothing. silent: nothing."""

LOG = logging.getLogger("headstart")


def warn(sentence: str) -> None:
    """Log a warning, in quiet runs too."""
    LOG.warning(sentence)


def info(accelerator: "Accelerator", line: str) -> None:
    """Log a line about a run, in its main process only."""
    if accelerator.is_main_process:
        LOG.info(line)
