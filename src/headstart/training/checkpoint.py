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
from headstart.files import fsync, sha256_of, write_atomically
from headstart.messages import LOG
from headstart.runs.folder import named_checkpoint

KEEP = 2
_NAME = re.compile(r"step_(\d{6,})(\.old)?$")  # .old: about to be replaced by one of the same step
_TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")
BEST = "best.safetensors"


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
    best: Path,
) -> Path:
    """Write folder/step_NNNNNN from one process; then remove all but the newest KEEP.

    best: the file of the best weights so far, if it is there; the checkpoint keeps it as it is now.
    Temporary folder, fsync of files and folder, rename: a reader sees all of it or none.
    """
    target = folder / f"step_{step:06d}"
    staging = folder / f"step_{step:06d}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("step_*.tmp"):
        shutil.rmtree(left)
    staging.mkdir()
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, staging / "model.safetensors")
    optimizer_tensors = {
        f"{name}/{entry}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }
    save_file(optimizer_tensors, staging / "optimizer.safetensors")
    if best.exists():
        _link_or_copy(best, staging / BEST)
    checksums = {path.name: sha256_of(path) for path in sorted(staging.iterdir())}
    position = {"step": step, "sha256": checksums, **state}
    (staging / "state.json").write_text(json.dumps({**position, "state_sha256": _digest(position)}, indent=2))
    for path in staging.iterdir():
        fsync(path)
    fsync(staging)
    if target.exists():  # stopped again at the step it was continued from
        os.replace(target, target.with_name(target.name + ".old"))
    os.replace(staging, target)
    fsync(folder)
    kept = [path for path in _complete(folder) if path.suffix != ".old"][-KEEP:]
    _discard([path for path in _complete(folder) if path not in kept])
    return target


def discard_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps: the run goes on from an earlier one that was named."""
    _discard([path for path in _complete(folder) if _step(path) > step])


def _discard(paths: list[Path]) -> None:
    """Out of sight first: one that is half removed must not be found."""
    for path in paths:
        gone = path.with_name(path.name + ".tmp")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone)


def find(resume: str, folder: Path) -> Path | None:
    """The checkpoint that `train.resume` names: never -> None, auto -> the newest in `folder` that is whole or None,
    or a path. Each damaged one is logged.

    Raises InputError if the one that is named is damaged, or all of them are.
    """
    if resume == "never":
        return None
    if resume != "auto":
        path = named_checkpoint(resume)
        if fault := _fault(path):
            raise InputError(f"train.resume {fault}; name another one, or use auto")
        return path
    found = _complete(folder)
    for path in reversed(found):
        if not (fault := _fault(path)):
            return path
        LOG.info(f"{fault}; looking for the one before")
    if found:
        raise InputError(f"no checkpoint in {folder} is whole; remove them to start anew")
    return None


def load(path: Path) -> Checkpoint:
    """One that `find` has found."""
    state = json.loads((path / "state.json").read_text())
    return Checkpoint(state, *(load_file(path / name) for name in _TENSOR_FILES))


def restore_best(path: Path, target: Path) -> None:
    """The best weights as they were when the checkpoint was written: what came after is about to be done again."""
    if (path / BEST).exists():
        write_atomically(target, lambda staging: _link_or_copy(path / BEST, staging))
    else:
        target.unlink(missing_ok=True)


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put the per-parameter state back, on the parameters' devices."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        if value.ndim:
            # in the parameter's own memory layout: fused optimizers walk through memory and look at no strides
            optimizer.state[parameter][entry] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:  # the step count of an optimizer that is not fused stays on the CPU
            device = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
            optimizer.state[parameter][entry] = value.to(device)


def _complete(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("step_*") if _NAME.match(path.name))
    return sorted(found, key=lambda path: (_step(path), path.suffix != ".old"))


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_").removesuffix(".old"))


def _digest(position: Mapping[str, Any]) -> str:
    """Of JSON values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(position, sort_keys=True).encode()).hexdigest()


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint: a file is missing or not as it was written."""
    try:
        position = json.loads((path / "state.json").read_text())
        if position.pop("state_sha256") != _digest(position):
            return f"{path / 'state.json'} is not as it was written (checksum)"
        sums = position["sha256"]
        for name in {*sums, *_TENSOR_FILES}:
            if sha256_of(path / name) != sums[name]:
                return f"{path / name} is not as it was written (checksum)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} is incomplete ({error})"
    return None


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
