"""`headstart evaluate`: a finished run on labelled images, each image once."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from headstart.config import DataConfig, RuntimeConfig
from headstart.data.eval_manifest import build_eval_manifest
from headstart.data.samples import Manifest
from headstart.data.source import Skipped
from headstart.data.sources.columns import ALL
from headstart.data.sources.open import open_source
from headstart.evaluation.predictions import Predictions, collect, describe, round_up
from headstart.model.find_model import find_model
from headstart.model.model_file import ModelInfo, load_model
from headstart.results import ClassMetrics, Evaluation, SkippedFile
from headstart.runs.about import About, read_about
from headstart.runs.files import data_of, read_table, to_evaluate
from headstart.runs.finished_run import EvaluatedImages
from headstart.runs.lock import SUMMARY
from headstart.runs.summary import Summary
from headstart.runtime.accelerator import start_accelerator
from headstart.runtime.processes import on_main
from headstart.runtime.signals import StopRequest


@dataclass(frozen=True)
class Evaluated:
    """What `headstart evaluate` finds. read: from the path of an image to the content of its file; data: the source of
    the images; knows_training_images: whether the run lists the images that it was trained on, so that they are left
    out; about: purpose and author of the run; trained: date and time of its end, UTC, None if unknown."""

    result: Evaluation
    images: EvaluatedImages
    read: Callable[[str], bytes]
    data: str
    knows_training_images: bool
    about: About
    trained: str | None


def evaluate_run(
    run: str,
    *,
    data: str | None,
    on_bad_file: str,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Evaluated:
    """The metrics and predictions, the same in all processes. data, split: as in `to_evaluate`. columns: values of the
    keys data.*_column that replace those of the run.

    Raises InputError for data that cannot be evaluated on and for a damaged run folder."""
    model_file = find_model(run)
    data, split = to_evaluate(run, data, split)
    model, info = load_model(model_file)
    accelerator = start_accelerator(RuntimeConfig(mixed_precision=info.mixed_precision))  # type: ignore[arg-type]
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    about, finished = _about(folder)
    trained, replaced = data_of(folder), dict(columns or {})
    kept = {key: trained[key] for key in ALL if key != "group_column" and trained.get(key)}
    manifest = on_main(
        accelerator,
        lambda: build_eval_manifest(
            open_source(DataConfig(root=data, **(kept | replaced)), to_evaluate=True, asked=replaced),
            classes=info.classes,
            on_bad_file=on_bad_file,
            trained_on=_training_images(folder),
            split=split,
            resplit=trained.get("split", "folder") != "folder",
            decoder=info.preprocess.decode,
        ),
    )
    predict = _predict_from_features if info.measured_on == "feature bank" else _predict
    with StopRequest() as stop:
        predictions = predict(accelerator, manifest, model, info, stop)
    samples = manifest.of("val")
    images = EvaluatedImages(
        info=info,
        model_file=model_file,
        paths=samples.column("path"),
        sha256=dict(zip(samples.column("path"), samples.column("sha256"), strict=True)),
        labels=predictions.labels,
        probabilities=predictions.probabilities,
    )
    return Evaluated(
        evaluation_of(describe(predictions, info.classes), skipped=manifest.skipped),
        images,
        manifest.source.read,
        data,
        (folder / "manifest.parquet").is_file(),
        about,
        finished,
    )


def evaluation_of(values: Mapping[str, Any], *, skipped: Sequence[Skipped] = ()) -> Evaluation:
    """values: of evaluation.predictions.describe."""
    results = {
        "per_class": {name: ClassMetrics(**row) for name, row in values["per_class"].items()},
        "confusion_matrix": tuple(map(tuple, values["confusion_matrix"])),
        "skipped": tuple(SkippedFile(file.path, file.reason) for file in skipped),
    }
    return Evaluation(**{"top5_accuracy": None, **values, **results})


def _predict(
    accelerator: Accelerator, manifest: Manifest, model: torch.nn.Module, info: ModelInfo, stop: StopRequest
) -> Predictions:
    """The network on all samples of split val, with the batch size and memory format of the training run: on the same
    machine the predictions are identical to the last bit."""
    from headstart.data.loaders import as_dataset, eval_loader

    samples = manifest.of("val")
    rows = as_dataset(samples, info.classes)
    batch_size = round_up(info.eval_batch_size, accelerator.num_processes)
    loader = eval_loader(rows, manifest.source, info.preprocess.eval_transform(), batch_size=batch_size, num_workers=0)
    if info.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return collect(
        accelerator,
        accelerator.prepare_model(model, evaluation_mode=True),
        accelerator.prepare(loader),
        info.preprocess,
        num_samples=len(samples),
        stop=stop,
        channels_last=info.channels_last,
    )


def _predict_from_features(
    accelerator: Accelerator, manifest: Manifest, model: torch.nn.Module, info: ModelInfo, stop: StopRequest
) -> Predictions:
    """The frozen trunk, then the head in float64, as in a run on cached features. The feature bank is temporary, so all
    features are computed with the weights of this model file."""
    from headstart.features import logistic_regression
    from headstart.features.bank import Bank
    from headstart.features.extraction import bank_transforms, features_of, fill, rows_of
    from headstart.model.backbones import find_backbone
    from headstart.model.forward import FrozenNetwork

    backbone, tensors = find_backbone(info.backbone), model.state_dict()
    samples = manifest.of("val")
    rows = rows_of(manifest.source, samples, bank_transforms(DataConfig(), info.preprocess, augmented_copies=0, seed=0))
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        bank = Bank(Path(on_main(accelerator, lambda: folder)), {"evaluation": True}, width=backbone.features)
        fill(
            accelerator,
            bank,
            rows,
            info.preprocess,
            lambda: FrozenNetwork(tensors, backbone, precision=info.mixed_precision, device=accelerator.device),
            num_workers=None,
            stop=stop,
        )
        features = features_of(bank, rows)[:]
        accelerator.wait_for_everyone()
    head = logistic_regression.Head(
        *(tensors[f"{backbone.head}.{name}"].double().numpy() for name in ("weight", "bias"))
    )
    return Predictions(head.logits(features).astype(np.float32), samples.codes(info.classes), features)


def _about(folder: Path) -> tuple[About, str | None]:
    """Purpose and author of a finished run, and when it ended; nothing if the folder holds only the model file."""
    if not ((folder / "manifest.parquet").is_file() and (folder / SUMMARY).is_file()):
        return About(), None
    return read_about(folder), Summary.read(folder).finished


def _training_images(folder: Path) -> Callable[[str, str], bool]:
    """Whether an image (sha256, path) was trained on, from the run's manifest; False for all if the folder holds only
    the model file. If a run has the same content in both splits under two names, only the training file counts."""
    if not (folder / "manifest.parquet").is_file():
        return lambda sha256, path: False
    rows = read_table(folder, "manifest.parquet").select(["sha256", "path", "split"]).to_pylist()
    validated = {row["sha256"] for row in rows if row["split"] == "val"}
    trained = {(row["sha256"], row["path"]) for row in rows if row["split"] == "train"}
    only_trained = {sha256 for sha256, _ in trained} - validated
    return lambda sha256, path: sha256 in only_trained or (sha256, path) in trained
