"""What can be wrong with a run and is known without torch, whose import takes long on slow machines."""

import sys

from headstart.config import RunConfig
from headstart.data.sources.open import open_source
from headstart.errors import InputError
from headstart.launcher import num_processes
from headstart.model.weight_sources import check_weights
from headstart.runs.folder import check_start, choose_folder, named_checkpoint
from headstart.training.tracker_names import trackers_in


def check_early(config: RunConfig) -> None:
    """Raise InputError if the images, the run folder, a checkpoint, the weights or a tracker cannot be used as far as
    names tell. Nothing is read or written.

    Only for a run of one process: several find the same mistakes together later, so that none waits for another."""
    check_root(config)
    if num_processes() > 1:
        return
    open_source(config.data).check()
    resume = config.train.resume
    if resume == "never":
        path = choose_folder(config.out, strategy=config.strategy.name, root=config.data.root)
        check_start(path, resume=resume, root=config.data.root)
    elif resume != "auto":
        named_checkpoint(resume)
    check_weights(config.model.weights, config.model.backbone)
    if "accelerate" not in sys.modules:  # where users register their own trackers
        trackers_in(config.runtime.trackers)


def check_root(config: RunConfig) -> None:
    """Raise InputError unless data.root is set, and train.resume fits the strategy."""
    if not config.data.root:
        raise InputError("no images are named; use headstart train DIR, or set data.root")
    if config.trains_on_features and config.train.resume not in ("never", "auto"):
        raise InputError(
            f"train.resume {config.train.resume}: a head on cached features has no checkpoints; leave it at never, or "
            "use --strategy.features recompute"
        )
