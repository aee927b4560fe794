"""Small training runs that several test files look at."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.cli.main import main
from headstart.config import DataConfig, ModelConfig, OptimConfig, RunConfig, RuntimeConfig, StrategyConfig, TrainConfig
from support.processes import Finished, Started, headstart_with_fault

RUN_FILES = {
    "README.md",
    "checkpoints",
    "config.yaml",
    "manifest.parquet",
    "metrics.jsonl",
    "model.safetensors",
    "predictions.parquet",
    "report.html",
    "summary.json",
    "train_batch.png",
    "val_predictions.png",
}
"""Of a finished run."""


def small(root: Path, out: Path, *, strategy: str = "fine_tune", **sections: dict) -> RunConfig:
    """ResNet-18 at 32 px, fp32, one thread, no workers: seconds per run. sections: changes per section."""
    config = RunConfig(
        out=str(out),
        data=DataConfig(root=str(root), image_size=32, num_workers=0, min_crop_scale=0.5),
        model=ModelConfig(weights="bundled"),
        strategy=StrategyConfig(name=strategy, features="bank" if strategy == "probe_then_tune" else "recompute"),
        optim=OptimConfig(name="sgd", lr=0.02, backbone_lr=0.005, warmup_epochs=0),
        train=TrainConfig(epochs=2, batch_size=8, eval_batch_size=8),
        runtime=RuntimeConfig(mixed_precision="no", threads=1),
    )
    for section, changes in sections.items():
        value = replace(getattr(config, section), **changes) if isinstance(changes, dict) else changes
        config = replace(config, **{section: value})
    return config


def exit_code(*argv: object) -> int:
    """Of a command in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return int(end.value.code or 0)


def stopped_at(nth: int, path: Path, config: Path) -> Finished:
    """`headstart train --config` in a process that gets SIGTERM when it opens `path`, or a file below it, for the
    n-th time after the scan of the images. Of the images 12 are opened first, for train_batch.png; each use counts
    if data.cache is off."""
    arguments = ("stop", nth, str(path), 0, "train", "--config", str(config))
    return Started(headstart_with_fault, *arguments, cwd=config.parent).finish()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[dict]:
    return [line for line in lines(folder) if "loss" in line]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in steps(folder)]


def epochs(folder: Path) -> list[dict]:
    return [line for line in lines(folder) if "epoch" in line]


def without_times(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())
