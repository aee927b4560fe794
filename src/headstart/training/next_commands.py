"""What to do after a run: commands that can be pasted."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headstart.config import IMAGE_KEYS, RunConfig
from headstart.data.samples import Manifest
from headstart.runs.finished_run import changed_keys
from headstart.wording import command_line


def next_commands(path: Path, config: RunConfig, manifest: Manifest) -> Iterator[str]:
    """For a finished run in `path`. config: resolved. A frozen head is followed by the steps that may improve on it."""
    yield command_line("open", path)
    if manifest.has_test and manifest.num_test != 0:
        skips = config.data.on_bad_file == "skip" or manifest.only_in_test  # else evaluate refuses the same images
        yield command_line("evaluate", path, *(["--on_bad_file", "skip"] if skips else []))
    image = Path(config.data.root) / manifest.of("val")[0].path
    if os.path.isfile(image):  # Path.is_file raises if a network disk is gone
        yield command_line("predict", path, image)
    if config.strategy.name == "frozen_head":
        changed = changed_keys(asdict(config))
        kept = {key: value for key, value in changed.items() if key.startswith(("data.", "model.")) or key == "seed"}
        root = kept.pop("data.root")
        yield command_line("train", root, "--config", "probe_then_tune", *_options(kept))
        columns = {key: changed[f"data.{key}"] for key in IMAGE_KEYS if f"data.{key}" in changed}
        yield command_line("choose", config.data.root, *_options(columns))


def _options(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"--{key}"
        yield value if isinstance(value, str) else json.dumps(value)
