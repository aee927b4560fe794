"""The public Python interface."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.config import RunConfig

if TYPE_CHECKING:
    import torch

    from headstart.predict.predictor import Predictor


def train(config: RunConfig) -> Path:
    """Train as `headstart train` does and return the run folder. Raises InputError for a user's mistake."""
    prepare_environment()
    from headstart.training.run import run

    return run(config)


def load(run: str | Path, *, device: "str | torch.device | None" = None, precision: str = "measured") -> "Predictor":
    """A finished run folder or model.safetensors, ready to `predict(images)`. Raises InputError.

    device: None for the GPU if there is one. precision: measured (that of the file), fp32, bf16, fp16 or auto."""
    prepare_environment()
    from headstart.predict.predictor import Predictor

    return Predictor(run, device=device, precision=precision)


def prepare_environment() -> None:
    """Set defaults that the libraries read when they are imported: telemetry is off, and threads sleep while they wait.

    With a decoding worker or another program on one of the cores, OpenMP's spinning halves the speed; on quiet cores it
    gains nothing (docs/benchmarks.md). No library goes online by itself; `push` and data from hf:// do because they are
    asked to.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
