"""The training state besides tensors, and whether a configuration may resume from it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headstart.config import MAY_CHANGE, RunConfig, flat, may_change
from headstart.config_io import load_config
from headstart.data.samples import Manifest
from headstart.errors import InputError
from headstart.model.weight_sources import AUTO
from headstart.runs.folder import RunFolder
from headstart.runs.lock import resume_command
from headstart.wording import listed


@dataclass
class TrainingState:
    """What state.json of a checkpoint holds besides checksums. best_*: of the best epoch so far; train_*: sums over the
    samples since the last epoch ended."""

    step: int = 0
    epochs_evaluated: int = 0
    best_epoch: int = 0
    best_correct: int = -1
    best_loss: float = math.inf
    train_loss_sum: float = 0.0
    train_correct: int = 0
    train_seen: int = 0
    layout: str = ""
    """Of the blocks of samples (data/sampling.py), which the sample order depends on. "" without blocks."""
    probe: dict[str, Any] = field(default_factory=dict)
    """probe_then_tune: results of the probe. "is_correct": for each validation image."""


def check_same_run(
    config: RunConfig, manifest: Manifest, saved: dict[str, Any], folder: RunFolder, *, layout: str
) -> str:
    """The keys that differ from those of the interrupted run and may. Raises InputError if the images or a key that may
    not change differ."""
    if manifest.sha256 != saved["manifest_sha256"]:
        raise InputError(
            f"the images in {manifest.root} are not those of the interrupted run: {_differences(folder, manifest)}; "
            "restore them, or start again in another --out"
        )
    if layout != saved.get("layout", ""):
        raise InputError(
            f"the images in {manifest.root} lie in other row groups than those of {saved['config']['data']['root']}, "
            "so their order would change; name the data of the interrupted run, or start again in another --out"
        )
    return check_same_recipe(config, saved["config"])


def check_same_recipe(config: RunConfig, saved: dict[str, Any], *, also: Sequence[str] = ()) -> str:
    """The keys that differ from the saved ones and may: MAY_CHANGE and `also`. Raises InputError for the others."""
    now, before = flat(json.loads(json.dumps(asdict(config)))), flat(saved)
    changed = {
        name: f"{name} {now.get(name)} (was {before.get(name)})"
        for name in sorted(now.keys() | before.keys())
        if now.get(name) != before.get(name)
    }
    allowed = [name for name in changed if may_change(name) or name in also]
    refused = [text for name, text in changed.items() if name not in allowed]
    if refused:
        raise InputError(
            f"{', '.join(refused)} would change the interrupted run; continue it without: "
            f"{resume_command(Path(config.out))}, or start again in another --out (these may change: "
            f"{', '.join([*MAY_CHANGE, *also])})"
        )
    return ", ".join(changed[name] for name in allowed if name not in ("train.resume", "out"))


def with_stored_weights(config: RunConfig, path: Path) -> RunConfig:
    """The configuration of a run in `path`, where the weights `auto` are those that an interrupted run chose there."""
    written = path / "config.yaml"
    if config.model.weights != AUTO or config.train.resume == "never" or not written.is_file():
        return config
    return replace(config, model=replace(config.model, weights=load_config([written]).model.weights))


def _differences(folder: RunFolder, manifest: Manifest) -> str:
    """The first images that are new, gone or changed since the run began."""
    try:
        rows = pq.read_table((folder.path / "manifest.parquet").absolute()).to_pylist()
    except (OSError, pa.ArrowException):
        return "its manifest.parquet is missing, so they cannot be listed"
    before = {row["path"]: (row["sha256"], row["split"], row["label"]) for row in rows}
    now = {sample.path: (sample.sha256, sample.split, sample.label) for sample in manifest.samples}
    found = [
        *(f"{path} (new)" for path in sorted(now.keys() - before.keys())),
        *(f"{path} (gone)" for path in sorted(before.keys() - now.keys())),
        *(f"{path} (changed)" for path in sorted(now.keys() & before.keys()) if now[path] != before[path]),
    ]
    return listed(found, limit=10)
