"""One training run by epochs: `run` assembles it in reading order; the loop is in loop.py."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from headstart.config import OptimConfig, RunConfig, check_divisible
from headstart.config_io import to_yaml
from headstart.data.device_transforms import DecodedImages, DeviceTransform, collate_decoded
from headstart.data.loaders import TransformedImages, collate, eval_loader, load_images, train_loader
from headstart.data.manifest import build_manifest
from headstart.data.pixel_cache import cache_limit_for
from headstart.data.samples import Manifest
from headstart.data.sampling import Blocks, epoch_draws, epoch_ends
from headstart.data.sources.open import open_source
from headstart.data.transforms import Preprocess, train_transform
from headstart.data_doctor.quick_check import describe_data
from headstart.errors import InputError, Stopped
from headstart.evaluation.predictions import Predictions, collect, describe, describe_calibration, round_up
from headstart.features.extraction import bank_transforms
from headstart.features.solvers import solve
from headstart.features.training_set import bank_features, open_bank
from headstart.model.calibration import calibrate
from headstart.model.classifier import Classifier, build_model
from headstart.model.golden_inputs import record as record_golden
from headstart.model.model_file import load_model, save_model
from headstart.model.weights import Weights, obtain_weights
from headstart.recipe.loss import TrainingLoss
from headstart.recipe.parameter_groups import build_optimizer, plan
from headstart.recipe.schedule import lr_factor
from headstart.runs.folder import RunFolder, check_nobody_writes, check_start, choose_folder, create_folder
from headstart.runs.lock import Running
from headstart.runs.progress import TrainingProgress
from headstart.runtime.accelerator import memory_in_use, set_threads, start_accelerator
from headstart.runtime.processes import finish, on_main
from headstart.runtime.signals import StopRequest
from headstart.training import checkpoint
from headstart.training.finish import (
    draw_curves,
    draw_predictions,
    model_info,
    resolve,
    say_result,
    summarize_run,
    write_pages,
    write_predictions,
)
from headstart.training.loop import fit
from headstart.training.num_workers import measure_num_workers
from headstart.training.recorder import Record
from headstart.training.state import Position, check_same_run
from headstart.training.trackers import Trackers, asked_for
from headstart.training.unused_keys import describe_idle


def run(config: RunConfig, *, last: bool = True) -> Path:
    """Train as configured, measure the best weights, and return the run folder.

    last: whether the processes may part afterwards.
    Raises InputError before anything is written if the input is wrong, Stopped after a signal and a checkpoint.
    """
    started = time.perf_counter()
    if not config.data.root:
        raise InputError("data.root is not set; name a folder of images with --data.root DIR")
    threads = set_threads(config.runtime.threads)
    batchnorm_trains = config.strategy.name != "frozen_head" and config.strategy.batchnorm == "train"
    accelerator = start_accelerator(config.runtime, accumulation=config.train.accumulation)
    check_divisible(config.train, num_processes=accelerator.num_processes)
    trackers_asked = asked_for(config.runtime)
    if ignored := describe_idle(config):
        accelerator.print(ignored)
    if config.data.num_workers is None and accelerator.device.type == "cpu":
        config = replace(config, data=replace(config.data, num_workers=1))
    workers = config.data.num_workers
    config = resolve(
        config,
        accelerator,
        f"{threads} thread{'s' if threads > 1 else ''} and {'as many as needed' if workers is None else workers} "
        f"decoding worker{'s' if workers != 1 else ''} each, global batch {config.train.batch_size}",
    )

    # data: scanned, hashed, decoded once and split by the main process; told to the others
    path, resume_from = on_main(accelerator, lambda: _choose_start(config))
    spec = Preprocess.of(config.data)
    cache_limit = cache_limit_for(config.data)
    transform, val_transform = (
        train_transform(config.data, spec, cache_limit=cache_limit),
        spec.eval_transform(cache_limit=cache_limit),
    )
    manifest = on_main(
        accelerator,
        lambda: build_manifest(
            open_source(config.data),
            config.data,
            seed=config.seed,
            say=print,
            decoder=spec.decode,
            keep=lambda split, sha256, image: (val_transform if split == "val" else transform).keep(sha256, image),
        ),
    )
    train_samples, val_samples = manifest.of("train"), manifest.of("val")
    if config.train.batch_size > len(train_samples):
        raise InputError(
            f"train.batch_size {config.train.batch_size} exceeds the {len(train_samples)} training images; "
            f"use at most {len(train_samples)}"
        )
    ends = epoch_ends(num_samples=len(train_samples), batch_size=config.train.batch_size, epochs=config.train.epochs)
    schedule = _schedule(
        config.optim, total_steps=ends[-1], steps_per_epoch=len(train_samples) / config.train.batch_size
    )
    accelerator.print(describe_data(manifest))

    # model
    weights = obtain_weights(accelerator, config.model.weights)
    model = build_model(
        len(manifest.classes), backbone=weights.tensors, head_init=config.model.head_init, seed=config.seed
    )
    if batchnorm_trains and accelerator.num_processes > 1:
        if accelerator.device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        else:
            accelerator.print(
                "BatchNorm statistics are those of each process's share of the batch (torch synchronises them on GPUs only); "
                "with --strategy.batchnorm freeze the run does not depend on the number of processes"
            )
    strategy = plan(model, config.strategy, config.optim)
    model.keep_in_eval(strategy.eval_modules)
    if config.runtime.channels_last:
        model = model.to(memory_format=torch.channels_last)
    blocks = None
    if config.data.sampling != "balanced":
        blocks = Blocks.of(train_samples.column("block"), train_samples.column("size"), size=config.data.shuffle_images)
    state = Position(layout="" if blocks is None else blocks.layout(train_samples.column("id")))
    resumed = None if resume_from is None else checkpoint.load(resume_from)
    if resumed is not None:
        changed = check_same_run(config, manifest, resumed.state, RunFolder(path), layout=state.layout)
        state = Position(**{name: resumed.state.get(name, value) for name, value in asdict(state).items()})
        model.load_state_dict(resumed.model, strict=True)

    if config.strategy.name == "probe_then_tune" and resumed is None:
        state.probe = _start_from_probe(accelerator, config, manifest, weights, spec, model)

    # batches
    train_rows = load_images(train_samples, manifest.classes)
    val_rows = load_images(val_samples, manifest.classes)
    train_labels = train_samples.codes(manifest.classes)
    balanced = train_labels if config.data.sampling == "balanced" else None
    on_device = config.data.augment_on == "device"
    num_workers = config.data.num_workers
    if num_workers is None:
        images = TransformedImages(train_rows, train_samples, transform, seed=config.seed)
        share = config.train.batch_size // accelerator.num_processes // config.train.accumulation
        num_workers, why = measure_num_workers(accelerator, model, images, spec, share=share)
        accelerator.print(f"{num_workers} decoding worker{'s' if num_workers != 1 else ''} each: {why}")
        config = replace(config, data=replace(config.data, num_workers=num_workers))
    batches = train_loader(
        train_rows,
        train_samples,
        transform,
        batch_size=config.train.batch_size,
        accumulation=config.train.accumulation,
        num_steps=ends[-1],
        start_step=state.step,
        seed=config.seed,
        num_workers=num_workers,
        labels=balanced,
        blocks=blocks,
        images=DecodedImages if on_device else TransformedImages,
        collate_fn=collate_decoded if on_device else collate,
    )
    val_batches = eval_loader(
        val_rows,
        val_samples,
        val_transform,
        batch_size=round_up(config.train.eval_batch_size, accelerator.num_processes),
        num_workers=num_workers,
    )

    # Accelerate
    optimizer = build_optimizer(strategy.groups, config.optim)
    first = state.step
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: schedule(first + done))
    bare_model = model
    model, optimizer, scheduler, batches, val_batches = accelerator.prepare(
        model, optimizer, scheduler, batches, val_batches
    )
    if resumed is not None:
        checkpoint.restore_optimizer(bare_model, optimizer.optimizer, resumed.optimizer)
        if accelerator.scaler is not None and resumed.state["scaler"] is not None:  # it began in fp16
            accelerator.scaler.load_state_dict(resumed.state["scaler"])

    # the run folder: nothing was written up to here
    path = on_main(
        accelerator, lambda: create_folder(path, new=config.train.resume == "never", numbered=not config.out).path
    )
    folder = RunFolder(path)
    running = Running(path if accelerator.is_main_process else None)
    if accelerator.is_main_process:
        if resumed is None:
            folder.forget_metrics_after(-1, epoch=-1)  # what a run left that was killed before its first checkpoint
            folder.model_file.unlink(missing_ok=True)
            folder.write_text("config.yaml", to_yaml(config))
            folder.write_table("manifest.parquet", manifest.table())
            _draw_train_batch(folder, batches.dataset, balanced)
        else:
            assert resume_from is not None
            checkpoint.discard_after(folder.checkpoints, state.step)
            folder.forget_metrics_after(state.step, epoch=state.epochs_measured)
            folder.write_text("config.yaml", to_yaml(config))
            checkpoint.restore_best(resume_from, folder.model_file)
            accelerator.print(
                f"continuing {path} after step {state.step} of {ends[-1]}" + (f", with {changed}" if changed else "")
            )
    info = model_info(config, manifest, spec, weights, measured_on="network")
    trackers = Trackers(accelerator, trackers_asked, path, config.runtime, asdict(config), step=state.step)
    folder.also_tell = trackers.record
    if resumed is None:
        trackers.picture("training images", path / "train_batch.png", step=0)

    with (
        StopRequest() as stop,
        TrainingProgress(
            ends=ends,
            start_step=state.step,
            batch_size=config.train.batch_size,
            speaks=accelerator.is_main_process,
            memory=partial(memory_in_use, accelerator.device),
        ) as progress,
        running,
        trackers,
    ):

        def measure_epoch(network: torch.nn.Module = model, head: torch.nn.Module | None = None) -> Predictions:
            """The validation images through the network as it is. A stop meanwhile is saved before it is raised."""
            try:
                return collect(
                    accelerator,
                    network,
                    val_batches,
                    spec,
                    num_samples=len(val_samples),
                    stop=stop,
                    channels_last=config.runtime.channels_last,
                    head=head,
                )
            except Stopped:
                record.position(optimizer)
                raise record.stopped(stop.signal_name, total_steps=ends[-1]) from None

        record = Record(accelerator, config, bare_model, info, folder, state, progress)
        if state.probe and state.step == 0:
            record.probe(measure_epoch())
        train_s = fit(
            record,
            model,
            optimizer,
            scheduler,
            batches,
            loss_of=TrainingLoss.of(
                config.optim, train_labels, num_classes=len(manifest.classes), device=accelerator.device
            ),
            spec=spec,
            ends=ends,
            measure_epoch=measure_epoch,
            pixels_of=DeviceTransform(transform, accelerator.device) if on_device else itemgetter("pixels"),
            stop=stop,
        )

        # the best weights, measured as they lie in the file
        accelerator.wait_for_everyone()
        best, _ = load_model(folder.model_file)
        bare_model.load_state_dict(best.state_dict())
        predictions = measure_epoch(bare_model, bare_model.fc)
    with StopRequest():  # what is left takes seconds: a signal meanwhile does not cost the run
        if accelerator.is_main_process:
            values = describe(predictions, manifest.classes)
            calibration = calibrate(
                predictions.logits,
                predictions.labels,
                predictions.features,
                chosen_on_val=config.train.epochs > 1 or bool(state.probe),
                seed=config.seed,
            )
            save_model(
                folder.model_file,
                bare_model,
                replace(
                    info,
                    metrics={"val": values, "best_epoch": state.best_epoch},
                    calibration=calibration,
                    golden=record_golden(info, bare_model.state_dict()),
                ),
            )
            write_predictions(folder, manifest, predictions)
            draw_curves(folder, state.curve)
            draw_predictions(folder, manifest, predictions, spec)
            summary = summarize_run(
                config,
                accelerator,
                manifest,
                weights,
                values,
                folder,
                best_epoch=state.best_epoch,
                epochs=config.train.epochs,
            )
            trained = (ends[-1] - first) * config.train.batch_size
            summary["calibration"] = describe_calibration(predictions, calibration)
            summary["train_images_per_s"] = trained / train_s if train_s > 0 else None
            if state.probe:
                summary["probe"], verdict = record.against_probe(predictions)
                accelerator.print(verdict)
            summary["wall_s"] = time.perf_counter() - started
            write_pages(folder, manifest, summary)
            folder.write_json("summary.json", summary)
            running.end()
            trackers.finish(folder.model_file, summary)
            found = f"epoch {state.best_epoch} of {config.train.epochs}"
            say_result(accelerator, values, found, wall_s=summary["wall_s"], path=path)
    finish(accelerator, last=last)
    return path


def _choose_start(config: RunConfig) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint to continue from."""
    path = choose_folder(config.out, strategy=config.strategy.name)
    resume_from = checkpoint.find(config.train.resume, path / "checkpoints", say=print)
    if resume_from is None:
        check_start(path, resume=config.train.resume)
    elif resume_from.resolve().parent.parent != path.resolve():
        raise InputError(
            f"train.resume {resume_from} is not a checkpoint of --out {path}; name the run folder that it lies in as --out"
        )
    elif (path / "summary.json").exists():
        raise InputError(f"--out {path} holds a finished run; name another folder")
    check_nobody_writes(path)
    return path, resume_from


def _start_from_probe(
    accelerator: Accelerator,
    config: RunConfig,
    manifest: Manifest,
    weights: Weights,
    spec: Preprocess,
    model: Classifier,
) -> dict[str, Any]:
    """Solve for the head on the frozen backbone and put it into the model; returns how it was found."""
    bank = open_bank(accelerator, config, weights, spec)
    transforms = bank_transforms(config.data, spec, augmented_copies=config.probe.augmented_copies, seed=config.seed)
    with StopRequest() as stop:
        features = bank_features(accelerator, config, bank, transforms, manifest, weights, spec, stop=stop)
    solved = on_main(accelerator, lambda: solve(config, manifest, features))
    model.fc.weight.data.copy_(torch.from_numpy(solved.head.weight))
    model.fc.bias.data.copy_(torch.from_numpy(solved.head.bias))
    return solved.facts


def _schedule(optim: OptimConfig, *, total_steps: int, steps_per_epoch: float) -> Callable[[int], float]:
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise InputError(
            f"optim.warmup_epochs {optim.warmup_epochs} is {warmup_steps} steps and the whole run has {total_steps}; "
            "make it shorter or train longer"
        )
    return lambda step: lr_factor(
        step,
        kind=optim.schedule,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        step_size=optim.step_epochs * steps_per_epoch,
        gamma=optim.step_gamma,
    )


def _draw_train_batch(folder: RunFolder, images: TransformedImages, balanced: np.ndarray | None) -> None:
    """The first training images of the first epoch, as the network will see them."""
    from headstart.report.png import image_grid

    order, drawn = epoch_draws(images.keys, seed=images.seed, epoch=0, labels=balanced)
    image_grid(
        folder.path / "train_batch.png",
        [images.pixels(int(index), int(before)) for index, before in zip(order[:12], drawn[:12], strict=True)],
        [images.samples[int(index)].label for index in order[:12]],
    )
