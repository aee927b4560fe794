"""Small training runs that several test files look at."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from headstart.config import DataConfig, ModelConfig, OptimConfig, RunConfig, RuntimeConfig, StrategyConfig, TrainConfig


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


_STOPPED_AT = """
import os, signal, sys
from headstart import cli
from headstart.data import loading

hits = 0
original = loading.Views.pixels
def counted(self, *item):
    global hits
    hits += 1
    if hits == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, *item)
loading.Views.pixels = counted
cli.main(["train", "--config", *sys.argv[2:]])
"""


def stopped_at(fetched: int, config: Path, folder: Path) -> subprocess.CompletedProcess:
    """`headstart train --config` in a process that gets SIGTERM when it fetches that image, counted from 1."""
    script = folder / "stopped_at.py"
    script.write_text(_STOPPED_AT)
    command = [sys.executable, str(script), str(fetched), str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
