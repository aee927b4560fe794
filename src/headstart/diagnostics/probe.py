"""`headstart probe`: cross-validated accuracy and learning curve of a frozen backbone on a data set."""

import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from headstart.config import RunConfig
from headstart.data.transforms import Preprocess
from headstart.errors import InputError
from headstart.features.extraction import features_of, fill, rows_of
from headstart.features.probe_study import Study, study
from headstart.features.training_set import describe_extraction, trunk_of
from headstart.files import check_out, write_json
from headstart.messages import info
from headstart.runtime.accelerator import set_threads, start_accelerator
from headstart.runtime.precision import choose_precision
from headstart.runtime.signals import StopRequest
from headstart.training.train_head import load_data


def probe_command(config: RunConfig, *, repeats: int, out: str | None) -> Study:
    """Compute the features, evaluate probes on both splits as one set of images, print and return the results.

    out: .json file for the results. Raises InputError for a class with fewer than two images."""
    check_out(out)
    set_threads(config.runtime.threads)
    accelerator = start_accelerator(config.runtime)
    precision, _ = choose_precision(config.runtime.mixed_precision, accelerator.device)
    config = replace(config, runtime=replace(config.runtime, mixed_precision=precision))  # type: ignore[arg-type]
    spec = Preprocess.of(config.data)
    weights, bank, transforms, manifest = load_data(accelerator, config, spec, pooled=True)
    samples = list({sample.sha256: sample for sample in manifest.samples}.values())  # a copy must not test itself
    codes = {name: code for code, name in enumerate(manifest.classes)}
    labels = np.array([codes[sample.label] for sample in samples])
    _must_have_two_of_each(labels, manifest.classes)
    rows = rows_of(manifest.source, samples, transforms[:1])
    with StopRequest() as stop:
        extraction = fill(
            accelerator,
            bank,
            rows,
            spec,
            trunk_of(accelerator, config, weights),
            num_workers=config.data.num_workers,
            stop=stop,
        )
    info(accelerator, describe_extraction(extraction, bank))
    started = time.perf_counter()
    found = study(
        features_of(bank, rows)[:],
        labels,
        [sample.sha256 for sample in samples],
        classes=manifest.classes,
        folds=config.probe.folds,
        repeats=repeats,
        seed=config.seed,
    )
    if accelerator.is_main_process:
        _print(found, folds=config.probe.folds, seconds=time.perf_counter() - started)
        if out is not None:
            write_json(Path(out), asdict(found))
    return found


def _must_have_two_of_each(labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Raise InputError for a class that cannot be both in training and in validation."""
    for name, count in zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True):
        if count < 2:
            raise InputError(
                f"class {name} has {count} image{'' if count == 1 else 's'} without copies, and cross-validation "
                "needs at least 2; add images or remove the class (headstart data check lists the copies)"
            )


def _print(found: Study, *, folds: int, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    low, high = found.ci95
    fewer = f" (the smallest class has {found.folds})" if found.folds < folds else ""
    console.print(
        f"accuracy {found.mean:.1%} [{low:.1%}, {high:.1%}], {len(found.accuracies)} x {found.folds}-fold over "
        f"{found.n} images{fewer}, l2 {found.l2:.3g}; 5 nearest neighbours {found.knn_accuracy:.1%}; {seconds:.1f} s"
    )
    table = Table("class", "n", "precision", "recall", "95% interval")
    for name, row in found.per_class.items():
        low, high = row["recall_ci95"]
        table.add_row(
            name, str(row["n"]), f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{low:.3f} to {high:.3f}"
        )
    console.print(table)
    curve = Table("training images per class", "accuracy", "sd over repeats")
    for point in found.curve:
        curve.add_row(f"{point['per_class']:.0f}", f"{point['accuracy']:.3f}", f"{point['sd']:.3f}")
    console.print(curve)
