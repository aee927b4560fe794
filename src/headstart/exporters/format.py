"""What a format is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from headstart.exporters.original import Answer, Original


def answers(classes: Sequence[str], probabilities: Callable[[Image.Image], Any]) -> Answer:
    """probabilities: of an opened model, an RGB image -> (C,) tensor or array, in the order of classes."""

    def answer(image: Image.Image) -> dict[str, float]:
        with torch.inference_mode():
            return dict(zip(classes, probabilities(image).tolist(), strict=True))

    return answer


@dataclass(frozen=True, kw_only=True)
class Format:
    """suffix: of the file, "" for a folder; modules: what has to be importable to write and to check it; extra: of headstart, that
    installs them, "" for none; tolerance: the largest difference of a probability, see `gate.check`; largest_loss: of
    accuracy, for a format that rounds the weights; write, open: see `exporters/as_torchvision.py` for the plainest."""

    name: str
    what: str
    suffix: str
    modules: tuple[str, ...]
    extra: str
    tolerance: float
    write: Callable[[Original, Path], None]
    open: Callable[[Path], Answer]
    largest_loss: float | None = None
