"""State to resume from: model and optimizer in safetensors, the position in JSON, complete or invisible."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from headstart.errors import InputError
from headstart.files import fsync

KEEP = 2
_NAME = re.compile(r"step_(\d{6,})$")
_TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """state: what `save` was given, JSON values; model: state dict; optimizer: per-parameter state by name."""

    state: dict[str, Any]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


def save(
    folder: Path,
    *,
    step: int,
    state: Mapping[str, Any],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Write folder/step_NNNNNN from one process; then remove all but the newest KEEP.

    Temporary folder, fsync of files and folder, rename: a reader sees all of it or none.
    """
    target = folder / f"step_{step:06d}"
    staging = folder / f"step_{step:06d}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, staging / "model.safetensors")
    save_file(_optimizer_tensors(model, optimizer), staging / "optimizer.safetensors")
    checksums = {name: _sha256(staging / name) for name in _TENSOR_FILES}
    (staging / "state.json").write_text(json.dumps({"step": step, "sha256": checksums, **state}, indent=2))
    for name in (*_TENSOR_FILES, "state.json"):
        fsync(staging / name)
    fsync(staging)
    if target.exists():
        shutil.rmtree(target)
    os.replace(staging, target)
    fsync(folder)
    for old in _complete(folder)[:-KEEP]:
        shutil.rmtree(old)
    return target


def find(resume: str, folder: Path) -> Path | None:
    """The checkpoint that `train.resume` names: never -> None, auto -> the newest in `folder` or None, or a path."""
    if resume == "never":
        return None
    if resume == "auto":
        found = _complete(folder)
        return found[-1] if found else None
    path = Path(resume)
    if not (path / "state.json").is_file():
        raise InputError(
            f"train.resume {resume} is not a checkpoint; name a folder RUN/checkpoints/step_*, or use auto"
        )
    return path


def load(path: Path) -> Checkpoint:
    """Raises InputError if a file is missing or not what was written."""
    try:
        state = json.loads((path / "state.json").read_text())
        for name in _TENSOR_FILES:
            if _sha256(path / name) != state["sha256"][name]:
                raise InputError(
                    f"{path / name} is not as it was written (checksum); remove {path} to use the one before"
                )
        return Checkpoint(state, *(load_file(path / name) for name in _TENSOR_FILES))
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"checkpoint {path} is incomplete ({error}); remove it to use the one before") from None


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put the per-parameter state back, on the parameters' devices."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        # the step count of an optimizer that is not fused stays on the CPU
        on_device = value.ndim or optimizer.defaults.get("fused")
        device = parameter.device if on_device else torch.device("cpu")
        optimizer.state[parameter][entry] = value.to(device)


def _optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{entry}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if _NAME.match(path.name)),
        key=lambda path: int(path.name.removeprefix("step_")),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
