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
from headstart.wording import plural


def probe_command(config: RunConfig, *, repeats: int, out: str | None) -> tuple[Study, float]:
    """Compute the features and evaluate probes on both splits as one set of images: the results, and the seconds that
    the probes took.

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
    for name, count in zip(manifest.classes, np.bincount(labels, minlength=len(codes)).tolist(), strict=True):
        if count < 2:
            raise InputError(
                f"class {name} has {plural(count, 'image')} without copies, and cross-validation needs at least 2; add "
                "images or remove the class (headstart data check lists the copies)"
            )
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
    seconds = time.perf_counter() - started
    if accelerator.is_main_process and out is not None:
        write_json(Path(out), asdict(found))
    return found, seconds
