"""Train a network on images: load the data, build the network, restore a checkpoint, fit, evaluate the best epoch."""

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from headstart.errors import InputError, Stopped
from headstart.evaluation.predictions import Predictions, collect
from headstart.messages import info
from headstart.model.build import build_model, check_trains_on_one_image, synchronized
from headstart.model.model_file import load_tensors, save_model_tensors
from headstart.model.network import Network
from headstart.model.weights import Weights
from headstart.recipe.loss import TrainingLoss
from headstart.recipe.optimizer import build_optimizer, lr_schedule, plan
from headstart.runs.folder import RunFolder
from headstart.runs.progress import TrainingProgress
from headstart.runtime.accelerator import memory_in_use
from headstart.runtime.signals import StopRequest
from headstart.training import checkpoint
from headstart.training.finish import Result, model_info
from headstart.training.image_data import Images, Inputs, draw_train_batch, load_batches, load_data
from headstart.training.log import TrainingLog
from headstart.training.loop import fit
from headstart.training.probe_then_tune import compare_with_probe, start_from_probe
from headstart.training.session import Session
from headstart.training.state import TrainingState, check_same_run


def train_network(session: Session) -> Result:
    """Train as configured and evaluate the best epoch. All processes call it.

    Raises InputError before anything is written if the input is wrong, Stopped after a signal and a checkpoint.
    """
    accelerator = session.accelerator
    weights = session.obtain_weights()
    images = load_data(session)
    config = session.config
    steps_per_epoch = len(images.labels) / config.train.batch_size
    schedule = lr_schedule(config.optim, total_steps=images.epoch_ends[-1], steps_per_epoch=steps_per_epoch)
    model, groups = build(session, weights, num_classes=len(images.manifest.classes))
    state, saved = restore(session, images, model)
    if config.strategy.name == "probe_then_tune" and saved is None:
        state.probe = start_from_probe(session, images.manifest, weights, model)
    first_step = state.step
    wrapped, optimizer, scheduler, batches, val_batches = prepare(
        session, images, model, groups, lambda done: schedule(first_step + done), first_step, saved
    )
    balanced = images.labels if config.data.sampling == "balanced" else None
    session.open_folder(images.manifest, partial(draw_train_batch, batches.dataset, balanced), state=state)
    info = model_info(session, images.manifest, weights, measured_on="network")
    progress = TrainingProgress(
        ends=images.epoch_ends,
        start_step=first_step,
        batch_size=config.train.batch_size,
        style=session.progress if accelerator.is_main_process else "silent",
        memory=partial(memory_in_use, accelerator.device),
    )
    with StopRequest("after this step, a checkpoint is saved") as stop, progress:
        log = TrainingLog(
            accelerator,
            config,
            state,
            [group["name"] for group in groups],
            progress,
            session.path,
            write=session.folder.log,
            keep_best=lambda metrics: save_model_tensors(
                session.folder.model_file, model.state_dict(), replace(info, metrics={"val": metrics})
            ),
            save=partial(save_state, session, model, optimizer, state, manifest_sha256=info.manifest_sha256),
        )
        evaluate = partial(evaluate_network, session, val_batches, log, stop)
        if state.probe and first_step == 0:
            log.probe(evaluate(wrapped))
        seconds = fit(
            wrapped,
            optimizer,
            scheduler,
            batches,
            accelerator=accelerator,
            state=state,
            epoch_ends=images.epoch_ends,
            inputs=Inputs(session, images),
            loss_fn=TrainingLoss.of(
                config.optim, images.labels, num_classes=len(images.manifest.classes), device=accelerator.device
            ),
            evaluate=partial(evaluate, wrapped),
            log=log,
            stop=stop,
            accumulation=config.train.accumulation,
            clip_norm=config.optim.clip_norm,
            checkpoint_steps=config.train.checkpoint_steps,
            checkpoint_s=60 * config.train.checkpoint_minutes,
        )
        accelerator.wait_for_everyone()
        tensors, _ = load_tensors(session.folder.model_file)  # the best epoch, evaluated as it lies in the file
        model.load_state_dict(tensors)
        predictions = evaluate(model, head=model.head_layer)
    trained = (images.epoch_ends[-1] - first_step) * config.train.batch_size
    probe, notes = compare_with_probe(state, predictions)
    return Result(
        info=info,
        manifest=images.manifest,
        weights=weights,
        tensors=tensors,
        predictions=predictions,
        best_epoch=state.best_epoch,
        epochs=config.train.epochs,
        chosen_on_val=config.train.epochs > 1 or bool(state.probe),
        images_per_s=trained / seconds if seconds > 0 else None,
        probe=probe,
        notes=notes,
        found=f"epoch {state.best_epoch} of {config.train.epochs}",
    )


def build(session: Session, weights: Weights, *, num_classes: int) -> tuple[Network, list[dict[str, Any]]]:
    """The network with a new head, its frozen parts in eval mode for good, and the optimizer's parameter groups."""
    config, accelerator = session.config, session.accelerator
    model = build_model(
        session.backbone, num_classes, tensors=weights.tensors, head_init=config.model.head_init, seed=config.seed
    )
    batchnorm_trains = config.strategy.name != "frozen_head" and config.strategy.batchnorm == "train"
    if batchnorm_trains and accelerator.num_processes > 1:
        if accelerator.device.type == "cuda":
            model = synchronized(model)
        else:
            info(
                accelerator,
                "each process computes BatchNorm statistics on its own share of the batch (torch synchronizes them on "
                "GPUs only); --strategy.batchnorm freeze makes the run independent of the number of processes",
            )
    strategy = plan(model, config.strategy, config.optim)
    model.keep_in_eval(strategy.eval_modules)
    share = config.train.batch_size // accelerator.num_processes // config.train.accumulation
    if share == 1 and (accelerator.num_processes == 1 or accelerator.device.type != "cuda"):
        check_trains_on_one_image(model, session.spec.image_size)
    if config.runtime.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model, strategy.groups


def restore(session: Session, images: Images, model: Network) -> tuple[TrainingState, checkpoint.Checkpoint | None]:
    """The state to train from, and the checkpoint that the model was restored from, if any. Raises InputError if the
    checkpoint is of other images or another recipe."""
    layout = "" if images.blocks is None else images.blocks.layout(images.manifest.of("train").column("id"))
    if session.resume_from is None:
        return TrainingState(layout=layout), None
    saved = checkpoint.load(session.resume_from)
    changed = check_same_run(session.config, images.manifest, saved.state, RunFolder(session.path), layout=layout)
    state = TrainingState(**{field.name: saved.state[field.name] for field in fields(TrainingState)})
    model.load_state_dict(saved.model, strict=True)
    info(
        session.accelerator,
        f"continuing {session.path} after step {state.step} of {images.epoch_ends[-1]}"
        + (f", with {changed}" if changed else ""),
    )
    return state, saved


def prepare(
    session: Session,
    images: Images,
    model: Network,
    groups: list[dict[str, Any]],
    schedule: Callable[[int], float],
    first_step: int,
    saved: checkpoint.Checkpoint | None,
) -> tuple[Any, ...]:
    """The network, the optimizer, restored if a checkpoint was saved, its schedule, and the data loaders of training
    and validation, prepared by Accelerate."""
    accelerator = session.accelerator
    batches, val_batches = load_batches(session, images, model, start_step=first_step)
    optimizer = build_optimizer(groups, session.config.optim)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    prepared = accelerator.prepare(model, optimizer, scheduler, batches, val_batches)
    if saved is not None:
        checkpoint.restore_optimizer(model, optimizer, saved.optimizer)
        if accelerator.scaler is not None and saved.state["scaler"] is not None:  # it started in fp16
            accelerator.scaler.load_state_dict(saved.state["scaler"])
    return tuple(prepared)


def evaluate_network(
    session: Session,
    batches: Any,
    log: TrainingLog,
    stop: StopRequest,
    network: nn.Module,
    head: nn.Module | None = None,
) -> Predictions:
    """The network on the validation images. A stop request during it is saved, then raised as Stopped."""
    try:
        return collect(
            session.accelerator,
            network,
            batches,
            session.spec,
            num_samples=len(batches.dataset),
            stop=stop,
            channels_last=session.config.runtime.channels_last,
            head=head,
        )
    except Stopped:
        log.save()
        raise log.stopped(stop.signal_name) from None


def save_state(session: Session, model: Network, optimizer: Any, state: TrainingState, *, manifest_sha256: str) -> None:
    """Write a checkpoint from the main process; the others wait until it is there.

    Raises InputError, in all processes, if a weight is not finite: training could not continue from there.
    """
    accelerator, folder, config = session.accelerator, session.folder, session.config
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise InputError(
            f"a weight is not finite after step {state.step}; lower optim.lr (now {config.optim.lr}) or set "
            "optim.clip_norm 1; the previous checkpoint is kept"
        )
    if accelerator.is_main_process:
        folder.fsync_metrics()
        saved = {name: value for name, value in asdict(state).items() if name != "step"}
        saved["scaler"] = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        saved |= {"config": asdict(config), "manifest_sha256": manifest_sha256}
        checkpoint.save(
            folder.checkpoints,
            step=state.step,
            state=saved,
            model=model,
            optimizer=optimizer.optimizer,
            best=folder.model_file,
        )
    accelerator.wait_for_everyone()
