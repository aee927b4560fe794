"""What a format is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headstart.export.original import Answer, Original


@dataclass(frozen=True, kw_only=True)
class Format:
    """suffix: of the file, "" for a folder; modules: what has to be importable to write and to check it; extra: of headstart, that
    installs them, "" for none; tolerance: the largest difference of a probability, see `gate.check`; largest_loss: of
    accuracy, for a format that rounds the weights; write, open: see `as_torchvision.py` for the plainest."""

    name: str
    what: str
    suffix: str
    modules: tuple[str, ...]
    extra: str
    tolerance: float
    write: Callable[[Original, Path], None]
    open: Callable[[Path], Answer]
    largest_loss: float | None = None
