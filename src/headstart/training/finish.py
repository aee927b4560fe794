"""What every run writes and says, however its model was found: facts, predictions, pictures, the summary."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from headstart.config import RunConfig
from headstart.data.samples import Manifest
from headstart.data.transforms import Preprocess
from headstart.errors import warn
from headstart.evaluation.predictions import Predictions, headline
from headstart.model.model_file import ModelInfo
from headstart.model.weights import Weights
from headstart.runs.folder import RunFolder, predictions_table
from headstart.runtime.accelerator import versions
from headstart.runtime.precision import choose_precision


def resolve(config: RunConfig, accelerator: Accelerator, how: str) -> RunConfig:
    """The configuration with precision and size of the resized image chosen; says so in one line, `how` at its end."""
    precision, why = choose_precision(config.runtime.mixed_precision, accelerator.device)
    runtime = replace(config.runtime, mixed_precision=precision)  # type: ignore[arg-type]
    data = replace(config.data, resize_size=Preprocess.of(config.data).resize_size)
    count = accelerator.num_processes
    accelerator.print(
        f"{count} process{'es' if count > 1 else ''} on {accelerator.device.type}, {precision} ({why}), {how}"
    )
    return replace(config, runtime=runtime, data=data)


def model_info(
    config: RunConfig, manifest: Manifest, spec: Preprocess, weights: Weights, *, measured_on: str
) -> ModelInfo:
    return ModelInfo(
        classes=manifest.classes,
        preprocess=spec,
        strategy=config.strategy.name,
        mixed_precision=config.runtime.mixed_precision,
        channels_last=config.runtime.channels_last,
        eval_batch_size=config.train.eval_batch_size,
        measured_on=measured_on,
        manifest_sha256=manifest.sha256,
        weights=Path(weights.source).name,  # where it lies is nobody's business
        weights_sha256=weights.sha256,
        seed=config.seed,
        versions=versions(),
        metrics={},
    )


def write_predictions(folder: RunFolder, manifest: Manifest, predictions: Predictions) -> None:
    """predictions.parquet."""
    samples = manifest.of("val")
    folder.write_table(
        "predictions.parquet",
        predictions_table(
            ids=samples.column("id"),
            paths=samples.column("path"),
            labels=samples.column("label"),
            probabilities=predictions.probabilities,
            classes=manifest.classes,
        ),
    )


def write_pages(folder: RunFolder, manifest: Manifest, summary: dict[str, Any]) -> None:
    """report.html and the model card, out of the files that are in the folder and the summary that will be. A run never fails
    for the sake of its pages: what goes wrong is one warning."""
    try:
        from headstart.report.command import write_pages as write

        write(folder.path, read=manifest.source.read, summary=summary)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        warn(
            f"report.html and README.md were not written ({type(error).__name__}: {reason}); the run is whole, and "
            f"headstart report {folder.path} tries again"
        )


def draw_curves(folder: RunFolder, epochs: list[dict[str, Any]]) -> None:
    from headstart.report.png import curves

    curves(folder.path / "curves.png", epochs)


def draw_predictions(folder: RunFolder, manifest: Manifest, predictions: Predictions, spec: Preprocess) -> None:
    """Validation images spread evenly over the split, the wrong ones marked."""
    from headstart.report.png import BAD, GOOD, image_grid

    samples = manifest.of("val")
    picked = sorted({round(i * (len(samples) - 1) / 17) for i in range(18)})
    probabilities = predictions.probabilities
    images, titles, colors = [], [], []
    for i in picked:
        guess, truth = int(probabilities[i].argmax()), int(predictions.labels[i])
        mark = "right" if guess == truth else f"wrong: is {manifest.classes[truth]}"
        images.append(spec.resize_and_crop(spec.decode(manifest.source.read(samples[i].path))))
        titles.append(f"{manifest.classes[guess]} {probabilities[i, guess]:.0%}\n{mark}")
        colors.append(GOOD if guess == truth else BAD)
    image_grid(folder.path / "val_predictions.png", images, titles, colors)


def summarize_run(
    config: RunConfig,
    accelerator: Accelerator,
    manifest: Manifest,
    weights: Weights,
    values: dict[str, Any],
    folder: RunFolder,
    *,
    best_epoch: int,
    epochs: int,
) -> dict[str, Any]:
    """summary.json but for what only the caller knows: wall_s, train_images_per_s and its own additions."""
    return {
        "strategy": config.strategy.name,
        "classes": list(manifest.classes),
        "train": {"n": len(manifest.of("train"))},
        "val": values,
        "best_epoch": best_epoch,
        "epochs": epochs,
        "wall_s": None,
        "train_images_per_s": None,
        "world_size": accelerator.num_processes,
        "device": accelerator.device.type,
        "mixed_precision": config.runtime.mixed_precision,
        "seed": config.seed,
        "weights": weights.source,
        "weights_sha256": weights.sha256,
        "manifest_sha256": manifest.sha256,
        "model_sha256": hashlib.sha256(folder.model_file.read_bytes()).hexdigest(),
        "skipped": [asdict(skipped) for skipped in manifest.skipped],
        "versions": versions(),
    }


def say_result(accelerator: Accelerator, values: dict[str, Any], found: str, *, wall_s: float, path: Path) -> None:
    """found: how the model was found, such as 'epoch 3 of 10'."""
    accelerator.print(
        f"{headline(values)}, {found}, {wall_s:.{0 if wall_s >= 10 else 1}f} s\n"
        f"{path}: model.safetensors, report.html, summary.json, predictions.parquet and more\n"
        f"next: headstart predict {path} IMAGES..."
    )
