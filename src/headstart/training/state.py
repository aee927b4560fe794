"""Where a run is: what a checkpoint says of it besides tensors, and whether a configuration may continue from there."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headstart.config import MAY_CHANGE, RunConfig, flat, may_change
from headstart.data.samples import Manifest
from headstart.errors import InputError
from headstart.runs.folder import RunFolder


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
    layout: str = ""  # of blocks of samples (sampling.py), "" without: the order of the samples depends on it
    probe: dict[str, Any] = field(default_factory=dict)  # probe_then_tune: what it started from, "right" per image
    curve: list[dict[str, Any]] = field(default_factory=list)


def check_same_run(
    config: RunConfig, manifest: Manifest, saved: dict[str, Any], folder: RunFolder, *, layout: str
) -> str:
    """Raise InputError if continuing would mix two recipes or two data sets. The machine may change; says what did."""
    if manifest.sha256 != saved["manifest_sha256"]:
        raise InputError(
            f"the images in {manifest.root} are not those that the interrupted run began with: "
            f"{_differences(folder, manifest)}; restore them, or start anew in another --out"
        )
    if layout != saved.get("layout", ""):
        raise InputError(
            f"the images in {manifest.root} lie in other row groups than those of {saved['config']['data']['root']}, so their "
            "order would change; name the data that the interrupted run began with, or start anew in another --out"
        )
    return check_same_recipe(config, saved["config"])


def check_same_recipe(config: RunConfig, saved: dict[str, Any], *, more: Sequence[str] = ()) -> str:
    """Raise InputError if a key that may not change differs from those saved; says which others do. more: also may."""
    now, before = flat(json.loads(json.dumps(asdict(config)))), flat(saved)
    changed = {
        name: f"{name} {now.get(name)} (was {before.get(name)})"
        for name in sorted(now.keys() | before.keys())
        if now.get(name) != before.get(name)
    }
    allowed = [name for name in changed if may_change(name) or name in more]
    refused = [text for name, text in changed.items() if name not in allowed]
    if refused:
        raise InputError(
            f"{', '.join(refused)} would change the interrupted run; continue it with --config {config.out}/config.yaml, "
            f"or start anew in another --out (these may change: {', '.join([*MAY_CHANGE, *more])})"
        )
    return ", ".join(changed[name] for name in allowed if name not in ("train.resume", "out"))


def _differences(folder: RunFolder, manifest: Manifest) -> str:
    """Which images are new, gone or changed since the run began, the first ones by name."""
    try:
        rows = pq.read_table(folder.path / "manifest.parquet").to_pylist()
    except (OSError, pa.ArrowException):
        return "its manifest.parquet is gone, so they cannot be named"
    before = {row["path"]: (row["sha256"], row["split"], row["label"]) for row in rows}
    now = {sample.path: (sample.sha256, sample.split, sample.label) for sample in manifest.samples}
    found = [
        *(f"{path} (new)" for path in sorted(now.keys() - before.keys())),
        *(f"{path} (gone)" for path in sorted(before.keys() - now.keys())),
        *(f"{path} (changed)" for path in sorted(now.keys() & before.keys()) if now[path] != before[path]),
    ]
    return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
