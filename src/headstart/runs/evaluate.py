"""`headstart evaluate`: a finished run on images with classes, each image once."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from headstart.config import DataConfig, RuntimeConfig
from headstart.data.manifest import build_eval_manifest
from headstart.data.samples import Manifest, summarize
from headstart.data.sources.open import COLUMN_KEYS, open_source
from headstart.errors import InputError
from headstart.evaluation.predictions import Predictions, collect, describe, headline, round_up
from headstart.files import check_out, write_atomically
from headstart.model.model_file import ModelInfo, find_model, load_model
from headstart.runtime.accelerator import set_threads, start_accelerator
from headstart.runtime.processes import on_main
from headstart.runtime.signals import StopRequest


def evaluate_manifest(accelerator: Accelerator, manifest: Manifest, model: Any, info: ModelInfo) -> Predictions:
    """The model on all samples of split val, as the training run measured them: to the last digit on its machine."""
    from headstart.data.loaders import eval_loader, load_images

    samples = manifest.of("val")
    if info.measured_on == "feature bank":
        return _through_the_trunk(accelerator, manifest, model, info)
    rows = load_images(samples, info.classes)
    batch_size = round_up(info.eval_batch_size, accelerator.num_processes)
    loader = eval_loader(rows, samples, info.preprocess.eval_transform(), batch_size=batch_size, num_workers=0)
    if info.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model, loader = accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(loader)
    with StopRequest() as stop:
        return collect(
            accelerator,
            model,
            loader,
            info.preprocess,
            num_samples=len(samples),
            stop=stop,
            channels_last=info.channels_last,
        )


def _through_the_trunk(accelerator: Accelerator, manifest: Manifest, model: Any, info: ModelInfo) -> Predictions:
    """The folded trunk and the head in float64, as a run on the feature bank computes them; the bank here is a
    temporary one, so that it is this file's network that is measured."""
    from headstart.features import logistic_regression
    from headstart.features.bank import Bank
    from headstart.features.extraction import bank_transforms, features_of, fill, rows_of
    from headstart.model.frozen_trunk import FEATURES, FrozenTrunk

    tensors = model.state_dict()
    samples = manifest.of("val")
    rows = rows_of(manifest.source, samples, bank_transforms(DataConfig(), info.preprocess, augmented_copies=0, seed=0))
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder, StopRequest() as stop:
        location = on_main(accelerator, lambda: folder)
        bank = Bank(Path(location), {"evaluation": True}, width=FEATURES)
        fill(
            accelerator,
            bank,
            rows,
            info.preprocess,
            lambda: FrozenTrunk(tensors, precision=info.mixed_precision, device=accelerator.device),
            num_workers=None,
            stop=stop,
        )
        head = logistic_regression.Head(tensors["fc.weight"].double().numpy(), tensors["fc.bias"].double().numpy())
        features = features_of(bank, rows)[:]
        logits = head.logits(features).astype(np.float32)
        accelerator.wait_for_everyone()
    return Predictions(logits, samples.codes(info.classes), features)


def evaluate_command(
    run: str,
    *,
    data: str,
    out: str | None,
    on_bad_file: str,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`headstart evaluate`: print the measurements and return them. split: see build_eval_manifest; columns: of the keys
    data.*_column those that are not the run's."""
    check_out(out)
    set_threads(None)
    model, info = load_model(find_model(run))
    accelerator = start_accelerator(RuntimeConfig(mixed_precision=info.mixed_precision))  # type: ignore[arg-type]
    asked, trained = dict(columns or {}), _data_of(Path(run))
    theirs = {key: trained[key] for key in COLUMN_KEYS if key != "group_column" and trained.get(key)}
    manifest = on_main(
        accelerator,
        lambda: build_eval_manifest(
            open_source(DataConfig(root=data, **(theirs | asked)), to_measure=True, asked=asked),
            classes=info.classes,
            on_bad_file=on_bad_file,
            trained_on=_training_images(Path(run)),
            split=split,
            anew=trained.get("split", "folder") != "folder",
            decoder=info.preprocess.decode,
        ),
    )
    if manifest.skipped:
        accelerator.print(f"not used, {len(manifest.skipped)}: {summarize(manifest.skipped)}")
    values = describe(evaluate_manifest(accelerator, manifest, model, info), info.classes)
    if accelerator.is_main_process:
        _print(values)
        if out is not None:
            text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            try:
                write_atomically(Path(out), lambda path: path.write_text(text, encoding="utf-8"))
            except OSError as error:
                raise InputError(f"--out {out}: {error.strerror}") from None
    return values


def _data_of(run: Path) -> dict[str, Any]:
    """The section data of the run's configuration; empty if only the model file is at hand."""
    path = (run if run.is_dir() else run.parent) / "config.yaml"
    if not path.is_file():
        return {}
    import yaml

    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({error}); it says how the data were split") from None


def _training_images(run: Path) -> Callable[[str, str], bool]:
    """Whether a (sha256, path) was trained on, by the run's manifest; never, if only the model file is at hand.

    Of a content that the run both trained on and measured on under two names, only the measured copy counts.
    """
    path = (run if run.is_dir() else run.parent) / "manifest.parquet"
    if not path.is_file():
        return lambda sha256, path: False
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, columns=["sha256", "path", "split"]).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        raise InputError(f"{path} is damaged ({error}); it says which images the model was trained on") from None
    measured = {row["sha256"] for row in rows if row["split"] == "val"}
    trained = {(row["sha256"], row["path"]) for row in rows if row["split"] == "train"}
    only_trained = {sha256 for sha256, _ in trained} - measured
    return lambda sha256, path: sha256 in only_trained or (sha256, path) in trained


def _print(values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    console.print(headline(values), highlight=False)
    console.print(
        f"loss {values['loss']:.4f}, balanced accuracy {values['balanced_accuracy']:.4f}, macro F1 {values['macro_f1']:.4f}",
        highlight=False,
    )
    console.print(
        f"Brier score {values['brier']:.4f}, calibration error {values['ece']:.4f} (up to {values['ece_by_chance95']:.4f} by chance)",
        highlight=False,
    )
    table = Table("class", "n", "precision", "recall", "95 % interval")
    for name, row in values["per_class"].items():
        seen = ["-", "-", "-"]
        if row["n"]:
            low, high = row["recall_ci95"]
            seen = [f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{low:.3f} to {high:.3f}"]
        table.add_row(name, str(row["n"]), *seen)
    console.print(table)
