"""A run from its start to its end: processes, resolved configuration, run folder, trackers."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from accelerate import Accelerator

from headstart.backbones import Backbone
from headstart.config import RunConfig, check_divisible
from headstart.config_io import to_yaml
from headstart.data.samples import Manifest
from headstart.data.transforms import Preprocess
from headstart.errors import InputError
from headstart.messages import ProgressStyle, info, warn
from headstart.model.backbones import find_backbone
from headstart.model.build import check_computes
from headstart.model.weights import Weights, obtain_weights
from headstart.runs.folder import (
    RunFolder,
    check_nobody_writes,
    check_start,
    choose_folder,
    create_folder,
    describe_place,
)
from headstart.runs.lock import RunLock, is_finished
from headstart.runtime.accelerator import set_threads, start_accelerator
from headstart.runtime.hardware import LoadOfOthers, bounded_workers
from headstart.runtime.precision import choose_precision, describe_precision
from headstart.runtime.processes import on_main
from headstart.training import checkpoint
from headstart.training.early_checks import check_root
from headstart.training.small_data import describe_batch_size, fit_batch_size
from headstart.training.state import TrainingState, with_stored_weights
from headstart.training.trackers import Trackers, installed_trackers
from headstart.training.unused_keys import describe_unused_keys
from headstart.wording import plural


@dataclass
class Session:
    """config: resolved. path: of the run folder. resume_from: a checkpoint, or None for a new run. began: time of
    time.perf_counter. folder, running, trackers: set by `open_folder`. Use it in a `with` block, which closes them
    after an error."""

    config: RunConfig
    accelerator: Accelerator
    backbone: Backbone
    spec: Preprocess
    path: Path
    resume_from: Path | None
    tracker_names: list[str]
    began: float
    progress: ProgressStyle
    folder: RunFolder = field(init=False)
    running: RunLock = field(init=False)
    trackers: Trackers = field(init=False)
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]

    def obtain_weights(self) -> Weights:
        """The pretrained weights, whose name replaces `auto` in the configuration. All processes call it. Raises
        InputError."""
        weights = obtain_weights(self.accelerator, self.config.model.weights, self.backbone)
        self.config = replace(self.config, model=replace(self.config.model, weights=weights.source))
        return weights

    def fit_batch_size(self, num_images: int) -> RunConfig:
        """Reduce the batch size, with a warning, if the training images cannot fill it; returns the new `config`."""
        on_features = self.config.trains_on_features
        processes = 1 if on_features else self.accelerator.num_processes
        fitted = fit_batch_size(self.config, num_images=num_images, num_processes=processes)
        warning = describe_batch_size(self.config, fitted, num_images=num_images)
        if warning and self.accelerator.is_main_process:
            warn(warning)
        if not on_features:
            self.accelerator.gradient_accumulation_steps = fitted.train.accumulation
        self.config = fitted
        return fitted

    def open_folder(
        self, manifest: Manifest, draw_train_batch: Callable[[Path], None], *, state: TrainingState
    ) -> None:
        """Create the run folder, or make that of an interrupted run ready to continue after state.step. Nothing is
        written before. All processes call it.

        draw_train_batch: draws the first training images to a PNG file."""
        config, accelerator = self.config, self.accelerator
        new, numbered = config.train.resume == "never", not config.out
        self.path = on_main(accelerator, lambda: create_folder(self.path, new=new, numbered=numbered).path)
        folder = self.folder = RunFolder(self.path)
        self.running = self._open.enter_context(RunLock(self.path if accelerator.is_main_process else None))
        picture = self.path / "train_batch.png"
        if accelerator.is_main_process:
            folder.write_text("config.yaml", to_yaml(config))
            if self.resume_from is None:
                folder.discard_metrics_after(-1, epoch=-1)  # of a run that was killed before its first checkpoint
                folder.model_file.unlink(missing_ok=True)
                folder.write_table("manifest.parquet", manifest.table())
                draw_train_batch(picture)
            else:
                checkpoint.discard_after(folder.checkpoints, state.step)
                folder.discard_metrics_after(state.step, epoch=state.epochs_evaluated)
                checkpoint.restore_best(self.resume_from, folder.model_file)
        trackers = Trackers(accelerator, self.tracker_names, self.path, config.runtime, asdict(config), step=state.step)
        self.trackers = self._open.enter_context(trackers)
        folder.on_line = trackers.log
        if self.resume_from is None:
            trackers.log_image("training images", picture, step=0)

    def leave_to_resume(self) -> None:
        """After a stop: if the run folder was not created yet, create it with the configuration, which is all that
        `headstart resume` needs."""
        if self.accelerator.is_main_process and not hasattr(self, "folder"):
            new, numbered = self.config.train.resume == "never", not self.config.out
            folder = create_folder(self.path, new=new, numbered=numbered)
            self.path = folder.path
            folder.write_text("config.yaml", to_yaml(self.config))


def start(config: RunConfig, *, progress: ProgressStyle, load: LoadOfOthers) -> Session:
    """Start the processes of a run, resolve its configuration and choose its folder; reports both in one line, and a
    busy machine in a second one. load: began before the libraries were imported, which takes seconds.

    Raises InputError, in all processes, if the configuration cannot be run; nothing is written.
    """
    began = time.perf_counter()
    check_root(config)
    on_features = config.trains_on_features
    threads = set_threads(config.runtime.threads)
    runtime = replace(config.runtime, compile=False) if on_features else config.runtime
    accelerator = start_accelerator(runtime, accumulation=1 if on_features else config.train.accumulation)
    if not on_features:
        check_divisible(config.train, num_processes=accelerator.num_processes)
    tracker_names = installed_trackers(config.runtime)
    backbone = find_backbone(config.model.backbone)
    spec = Preprocess.of(config.data, backbone)
    check_computes(backbone, spec.image_size)
    precision, why = choose_precision(config.runtime.mixed_precision, accelerator.device)
    resolved = replace(
        config,
        runtime=replace(config.runtime, mixed_precision=precision),  # type: ignore[arg-type]
        data=replace(config.data, image_size=spec.image_size, resize_size=spec.resize_size),
    )
    if on_features:
        steps = {"sgd": f"minibatches, {config.optim.name}", "full_batch": f"full batches, {config.optim.name}"}
        how = f"head on cached features ({steps.get(config.probe.solver, config.probe.solver)})"
    else:
        how = f"global batch {config.train.batch_size}"
        if (asked := config.data.num_workers) is not None:  # else `load_batches` measures and reports it
            started = bounded_workers(asked)
            less = "" if started == asked else f" (data.num_workers {asked} is more than the cores and memory allow)"
            how = f"{plural(started, 'decoding worker')} per process{less}, {how}"
    info(
        accelerator,
        f"{plural(accelerator.num_processes, 'process')} on {accelerator.device.type}, "
        f"{describe_precision(precision, why)}, {plural(threads, 'thread')} per process, {how}",
    )
    if accelerator.device.type == "cpu" and config.runtime.threads is None and (busy := load.advice(threads=threads)):
        info(accelerator, busy)
    path, resume_from = on_main(accelerator, lambda: _choose_start(resolved))
    if place := describe_place(config.out, path):
        info(accelerator, place)
    resolved = on_main(accelerator, lambda: with_stored_weights(resolved, path))
    if unused := describe_unused_keys(config):
        info(accelerator, unused)
    if config.optim.warmup_epochs > config.train.epochs / 2 and config.trains_by_epochs:
        info(
            accelerator,
            f"optim.warmup_epochs {config.optim.warmup_epochs:g} would be more than half of the run: the warm-up takes "
            f"{config.train.epochs / 2:g} of {plural(config.train.epochs, 'epoch')}",
        )
    return Session(resolved, accelerator, backbone, spec, path, resume_from, tracker_names, began, progress)


def _choose_start(config: RunConfig) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint to continue from. Raises InputError if neither a new run can start there
    nor an interrupted one continue."""
    path = choose_folder(config.out, strategy=config.strategy.name, root=config.data.root)
    resume_from = checkpoint.find(config.train.resume, path / "checkpoints")
    if resume_from is None:
        check_start(path, resume=config.train.resume, root=config.data.root)
    elif resume_from.resolve().parent.parent != path.resolve():
        raise InputError(f"train.resume {resume_from} is not a checkpoint of --out {path}; set --out to its run folder")
    elif is_finished(path):
        raise InputError(f"--out {path} already contains a finished run; name another folder")
    check_nobody_writes(path)
    return path, resume_from
