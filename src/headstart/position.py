"""Where a run is: what a checkpoint says of it besides tensors, and whether a configuration may continue from there."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate import Accelerator

from headstart import checkpoint
from headstart.artifacts import ModelInfo, RunFolder
from headstart.config import RunConfig
from headstart.data.manifest import Manifest
from headstart.errors import InputError, Stopped
from headstart.model import Classifier
from headstart.runtime import StopRequest


@dataclass
class Position:
    """The position of a run; what a checkpoint's state.json holds besides checksums."""

    step: int = 0
    epochs_measured: int = 0
    best_epoch: int = 0
    best_correct: int = -1
    best_loss: float = math.inf
    train_loss_sum: float = 0.0  # of the samples since the last epoch ended
    train_correct: int = 0
    train_seen: int = 0
    probe: dict[str, Any] = field(default_factory=dict)  # probe_then_tune: what it started from, "right" per image
    curve: list[dict[str, Any]] = field(default_factory=list)


def save_position(
    accelerator: Accelerator,
    folder: RunFolder,
    state: Position,
    config: RunConfig,
    info: ModelInfo,
    model: Classifier,
    optimizer: Any,
) -> None:
    """From the main process; the others wait until it is there."""
    if accelerator.is_main_process:
        scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        saved = asdict(state)
        saved.pop("step")
        checkpoint.save(
            folder.checkpoints,
            step=state.step,
            state={**saved, "scaler": scaler, "config": asdict(config), "manifest_sha256": info.manifest_sha256},
            model=model,
            optimizer=optimizer.optimizer,
        )
    accelerator.wait_for_everyone()


def stopped(stop: StopRequest, state: Position, folder: RunFolder, *, total: int) -> Stopped:
    return Stopped(
        f"stopped by {stop.signal_name or 'a signal'} at step {state.step} of {total}, saved in {folder.path}; "
        f"continue with --out {folder.path} --train.resume auto"
    )


def check_same_run(config: RunConfig, manifest: Manifest, saved: dict[str, Any]) -> None:
    """Raise InputError if continuing would mix two recipes or two data sets. The machine may change."""
    if manifest.sha256 != saved["manifest_sha256"]:
        raise InputError(
            f"the images in {manifest.root} are not those that the interrupted run began with; restore them, or "
            "start anew in another --out"
        )
    now = json.loads(json.dumps(asdict(config)))
    may_change = {
        "out",
        "runtime",
        "data.root",
        "data.cache",
        "data.num_workers",
        "train.resume",
        "train.checkpoint_epochs",
    }
    changed = [
        f"{section}.{key}" if isinstance(now[section], dict) else section
        for section in now
        for key in (now[section] if isinstance(now[section], dict) else [""])
        if (now[section][key] != saved["config"][section].get(key) if key else now[section] != saved["config"][section])
    ]
    refused = [name for name in changed if name not in may_change and name.split(".")[0] not in may_change]
    if refused:
        raise InputError(
            f"{', '.join(refused)} differ from the interrupted run; continue it with --config {config.out}/config.yaml, "
            "or start anew in another --out"
        )
