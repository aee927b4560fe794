"""`headstart choose`: the same probe on the features of every candidate, and the choice among them."""

import contextlib
import platform
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from headstart.config import IMAGE_KEYS, RunConfig
from headstart.data.manifest import build_manifest
from headstart.data.pixel_cache import CacheLimit, cache_limit_for
from headstart.data.samples import Manifest, Sample
from headstart.data.sources.open import open_source
from headstart.data.splits import groups_of, stratified_split, units_of
from headstart.data.transforms import PixelCache, Preprocess
from headstart.data_doctor.quick_check import describe_data
from headstart.errors import InputError, Stopped
from headstart.evaluation.statistics import wilson
from headstart.features.bank import EVAL_TRANSFORM, Bank, row_name
from headstart.features.extraction import BankTransform, bank_transforms, features_of, fill, rows_of
from headstart.features.training_set import backbone_of, describe_extraction, open_bank, trunk_of
from headstart.files import write_atomically
from headstart.messages import info
from headstart.model.weights import Weights, obtain_weights
from headstart.results import Candidate, Choice
from headstart.runtime.accelerator import set_threads, start_accelerator
from headstart.runtime.hardware import cores_per_process, usable_cores
from headstart.runtime.precision import choose_precision
from headstart.runtime.processes import from_all, on_main
from headstart.runtime.signals import StopRequest
from headstart.selection import stored
from headstart.selection.candidates import Wanted, candidates
from headstart.selection.nested import (
    FEWEST,
    Probe,
    best_of,
    compare_with_best,
    deal_folds,
    probe,
    promised,
    repeats_for,
)
from headstart.selection.nested import selected as selected_candidates
from headstart.selection.options import check_candidates, check_places, naming_options
from headstart.selection.speed import Size, measure
from headstart.wording import plural

_T = TypeVar("_T")

IMAGES = 10_000
"""Default of the largest number of images: with so many, the interval of an accuracy of 90% is 1.2 points wide."""


@dataclass(frozen=True)
class _Prepared:
    """A candidate whose input has been checked. config: of a frozen head on it."""

    wanted: Wanted
    config: RunConfig
    spec: Preprocess
    weights: Weights
    bank: Bank
    transform: BankTransform


@dataclass(frozen=True)
class _Images:
    """Training images without copies. fold_of: (R, n) int; labels: (n,) int; num_copies: that were left out;
    num_available: before the largest number was applied."""

    samples: list[Sample]
    labels: np.ndarray
    fold_of: np.ndarray
    num_copies: int
    num_available: int


@naming_options
def choose_backbone(
    config: RunConfig,
    *,
    backbones: Sequence[str],
    sizes: Sequence[int],
    weights: str | None,
    repeats: int | None,
    images: int,
    out: str | None,
) -> Choice:
    """Compare the candidates on the training images of config.data.root, and write RESULT_FILES to the folder `out`.
    All processes call it, and get the result.

    config: with the seed, the folds, the images and the bank; backbones, sizes, weights: as for `candidates`.
    Raises InputError before features are computed if the input is wrong, and Stopped after a signal; what has been
    computed by then is kept in the bank."""
    for name, number in (("repeats", repeats), ("images", images)):
        if number is not None and number < 1:
            raise InputError(f"--{name} is {number}; it must be at least 1")
    check_candidates(backbones, sizes)
    set_threads(config.runtime.threads)
    accelerator = start_accelerator(config.runtime)
    precision, _ = choose_precision(config.runtime.mixed_precision, accelerator.device)
    config = replace(config, runtime=replace(config.runtime, mixed_precision=precision))  # type: ignore[arg-type]
    on_main(accelerator, lambda: check_places(config.data, out))
    wanted = on_main(accelerator, lambda: candidates(backbones, sizes, weights))
    prepared = _prepare(accelerator, config, wanted)
    manifest = _manifest(accelerator, config, prepared)
    chosen_images = on_main(accelerator, lambda: _images(manifest, config, repeats=repeats, most=images))
    info(accelerator, describe_data(manifest))
    machine = _machine(accelerator, precision)
    with StopRequest("finished features and results are stored") as stop:
        study = partial(_study, accelerator, manifest=manifest, images=chosen_images, machine=machine, stop=stop)
        try:
            found = [study(one, label=f"{number} of {len(wanted)}") for number, one in enumerate(prepared, 1)]
        except Stopped as stopped:
            message = f"{stopped}; the same command continues"
            raise Stopped(message, signal_name=stopped.signal_name) from None
    choice = _choice(config, prepared, found, manifest, chosen_images, machine=machine)
    choice = replace(choice, notes=(*choice.notes, *_fixed_sizes(wanted, sizes)))
    if out is not None:
        on_main(accelerator, lambda: _write(choice, Path(out)))
    return choice


def _prepare(accelerator: Accelerator, config: RunConfig, wanted: Sequence[Wanted]) -> list[_Prepared]:
    """Load the weights and open the banks: mistakes come before the work."""
    loaded: dict[tuple[str, str], Weights] = {}
    limit = cache_limit_for(config.data)
    limit = CacheLimit(limit.num_bytes // len(wanted), limit.on_disk)
    prepared = []
    for one in wanted:
        key = (one.backbone.name, one.weights)
        if key not in loaded:
            loaded[key] = obtain_weights(accelerator, one.weights, one.backbone)
        ours = replace(
            config,
            data=replace(config.data, image_size=one.image_size),
            model=replace(config.model, backbone=one.backbone.name, weights=one.weights),
        )
        spec = Preprocess.of(ours.data, one.backbone)
        bank = open_bank(accelerator, ours, loaded[key], spec)
        (transform,) = bank_transforms(ours.data, spec, augmented_copies=0, seed=config.seed, cache_limit=limit)
        prepared.append(_Prepared(one, ours, spec, loaded[key], bank, transform))
    return prepared


def _manifest(accelerator: Accelerator, config: RunConfig, prepared: Sequence[_Prepared]) -> Manifest:
    """The images, split as in a run. Each is decoded once for all candidates."""
    largest = max((one.spec for one in prepared), key=lambda spec: spec.resize_size)
    cache = PixelCache(train=[one.transform.transform for one in prepared], val=[])
    return on_main(
        accelerator,
        lambda: build_manifest(
            open_source(config.data),
            config.data,
            seed=config.seed,
            decoder=largest.decode,
            known=lambda sha256: all(row_name(sha256, EVAL_TRANSFORM) in one.bank for one in prepared),
            cache=cache,
        ),
    )


def _images(manifest: Manifest, config: RunConfig, *, repeats: int | None, most: int) -> _Images:
    """Raises InputError for a class with too few images."""
    samples = list(manifest.of("train"))
    contents = [sample.sha256 for sample in samples]
    units = contents
    if config.data.groups or config.data.group_column:
        entries = {entry.path: entry for entry in manifest.source.scan().entries}
        units = units_of(groups_of([entries[sample.path] for sample in samples], config.data.groups), contents)
    first = sorted({sha256: row for row, sha256 in reversed(list(enumerate(contents)))}.values())
    num_copies, num_available = len(samples) - len(first), len(first)
    samples, units = [samples[row] for row in first], [units[row] for row in first]
    if num_available > most:
        all_units, strata = units, [sample.label for sample in samples]
        drawn = stratified_split(units, strata, val_fraction=most / num_available, seed=config.seed)
        rows = [row for row, part in enumerate(drawn) if part == "val"]
        samples, units = [samples[row] for row in rows], [units[row] for row in rows]
        _check_drawn(units, [sample.label for sample in samples], before=(all_units, strata), most=most)
    code = {name: number for number, name in enumerate(manifest.classes)}
    fold_of = deal_folds(
        units,
        [sample.label for sample in samples],
        classes=manifest.classes,
        folds=config.probe.folds,
        repeats=repeats or repeats_for(len(samples)),
        seed=config.seed,
    )
    labels = np.array([code[sample.label] for sample in samples])
    return _Images(samples, labels, fold_of, num_copies, num_available)


def _check_drawn(
    units: Sequence[str], strata: Sequence[str], *, before: tuple[Sequence[str], Sequence[str]], most: int
) -> None:
    """Raise InputError if a class had enough units, the images and groups, before those were drawn."""
    for label in sorted(set(before[1])):
        number, all_of_it = (
            len({unit for unit, stratum in zip(names, labels, strict=True) if stratum == label})
            for names, labels in ((units, strata), before)
        )
        if number < FEWEST <= all_of_it:
            raise InputError(
                f"--images is {most}, which leaves class {label} {plural(number, 'image')} or groups of them; nested "
                f"cross-validation needs at least {FEWEST} of each class, so use a larger number"
            )


def _machine(accelerator: Accelerator, precision: str) -> str:
    device = accelerator.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({_processor()})"
    return (
        f"{kind}, {'fp32' if precision == 'no' else precision}, {plural(usable_cores(), 'core')}, "
        f"{plural(accelerator.num_processes, 'process')}"
    )


def _processor() -> str:
    """The name of the processor; its architecture where the system does not tell it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def _study(
    accelerator: Accelerator,
    one: _Prepared,
    manifest: Manifest,
    images: _Images,
    *,
    machine: str,
    stop: StopRequest,
    label: str,
) -> tuple[Probe, Size]:
    """The results of one candidate: those that are stored, or new ones, which are stored."""
    contents = [sample.sha256 for sample in images.samples]
    path = stored.file_of(one.bank.path, contents, images.labels, images.fold_of)
    found, size = on_main(accelerator, lambda: stored.read(path, machine=machine))
    name = f"{one.wanted.name} ({label})"
    if found is not None and size is not None:
        info(accelerator, f"{name}: results from the bank {one.bank.path}")
        return found, size
    num_classes = len(manifest.classes)
    if found is None:
        rows = rows_of(manifest.source, images.samples, [one.transform])
        trunk = trunk_of(accelerator, one.config, one.weights)
        extraction = fill(
            accelerator,
            one.bank,
            rows,
            one.spec,
            trunk,
            num_workers=one.config.data.num_workers,
            stop=stop,
            what=f"features of {name}",
        )
        info(accelerator, f"{name}: {describe_extraction(extraction, one.bank)}")
        found = probe(
            features_of(one.bank, rows)[:],
            images.labels,
            images.fold_of,
            num_classes=num_classes,
            run=lambda work, units: _by_all(accelerator, work, units, stop=stop),
            stopped=lambda: stop.signal_name is not None,
        )
    tensors, _ = backbone_of(one.config, one.weights)
    size = measure(
        tensors,
        one.wanted.backbone,
        image_size=one.wanted.image_size,
        num_classes=num_classes,
        precision=one.config.runtime.mixed_precision,
        device=accelerator.device,
    )
    sizes = from_all(accelerator, size)
    size = replace(
        size,
        predict_images_per_s=sum(each.predict_images_per_s for each in sizes),
        train_images_per_s=sum(each.train_images_per_s for each in sizes),
    )
    if accelerator.is_main_process:
        with contextlib.suppress(OSError):  # a bank on a read-only disk
            stored.write(path, found, size, machine=machine)
    _end_if_stopped(accelerator, stop)
    return found, size


def _by_all(
    accelerator: Accelerator, work: Callable[[_T], Any], units: Sequence[_T], *, stop: StopRequest
) -> list[Any]:
    """The results in order, in all processes; each process does a share of the units, one per core at a time."""

    def unless_stopped(unit: _T) -> Any:
        return None if stop.signal_name is not None else work(unit)

    count = accelerator.num_processes
    # several products at once, each in one thread; the command line sets OPENBLAS_NUM_THREADS, Python does not
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores_per_process()) as pool:
        share = list(pool.map(unless_stopped, units[accelerator.process_index :: count]))
    shares = from_all(accelerator, share)
    _end_if_stopped(accelerator, stop)
    return [shares[number % count][number // count] for number in range(len(units))]


def _end_if_stopped(accelerator: Accelerator, stop: StopRequest) -> None:
    if stop.agreed(accelerator):
        raise Stopped(
            f"stopped by {stop.signal_name or 'a signal'}; the finished features and results are stored",
            signal_name=stop.signal_name,
        )


def _choice(
    config: RunConfig,
    prepared: Sequence[_Prepared],
    found: Sequence[tuple[Probe, Size]],
    manifest: Manifest,
    images: _Images,
    *,
    machine: str,
) -> Choice:
    probes, names = [result for result, _ in found], [one.wanted.name for one in prepared]
    n, best = len(images.samples), best_of(probes)
    repeats, folds = len(images.fold_of), config.probe.folds
    right = round(float(promised(probes, images.fold_of).sum(axis=1).mean()))
    chosen_in = np.bincount(selected_candidates(probes).ravel(), minlength=len(probes)) / (repeats * folds)
    rows = []
    for number, (one, (result, size)) in enumerate(zip(prepared, found, strict=True)):
        rows.append(
            Candidate(
                name=one.wanted.name,
                backbone=one.wanted.backbone.name,
                weights=one.wanted.weights,
                image_size=one.wanted.image_size,
                correct=result.num_correct,
                accuracy=result.num_correct / n,
                accuracy_ci95=wilson(result.num_correct, n),
                loss=result.loss,
                selected_share=float(chosen_in[number]),
                **asdict(size),
            )
        )
    comparisons = compare_with_best(names, probes, images.labels)
    by_name = {row.name: row for row in rows}
    return Choice(
        data=config.data.root,
        classes=manifest.classes,
        n=n,
        folds=folds,
        repeats=repeats,
        seed=config.seed,
        machine=machine,
        chosen=names[best],
        expected_accuracy=right / n,
        expected_ci95=wilson(right, n),
        candidates=(rows[best], *(by_name[comparison.first] for comparison in comparisons)),
        comparisons=tuple(comparisons),
        command=_command(config, prepared[best].wanted),
        notes=tuple(_notes(config, manifest, images, num_candidates=len(rows), repeats=repeats)),
    )


def _command(config: RunConfig, chosen: Wanted) -> str:
    """The command that trains a frozen head on these images; keys that have their default are left out."""
    default, data = RunConfig(), config.data
    words = ["headstart", "train", data.root, "--model.backbone", chosen.backbone.name]
    if chosen.weights != "imagenet":  # which is found without its name, because it has just been used
        words += ["--model.weights", chosen.weights]
    if chosen.image_size != chosen.backbone.image_size:
        words += ["--data.image_size", str(chosen.image_size)]
    for key in IMAGE_KEYS:
        if getattr(data, key) != getattr(default.data, key):
            words += [f"--data.{key}", str(getattr(data, key))]
    if config.seed != default.seed:
        words += ["--seed", str(config.seed)]
    if config.runtime.bank:
        words += ["--runtime.bank", config.runtime.bank]
    return shlex.join(words)


def _notes(config: RunConfig, manifest: Manifest, images: _Images, *, num_candidates: int, repeats: int) -> list[str]:
    n, num_val = len(images.samples), len(manifest.of("val"))
    notes = [
        f"The choice was made without the {plural(num_val, 'validation image')}, on which a run with the chosen "
        "backbone is evaluated."
    ]
    if n < images.num_available:
        notes.append(f"{n:,} of {images.num_available:,} training images were drawn (--images).")
    if images.num_copies:
        were = "was" if images.num_copies == 1 else "were"
        notes.append(f"{plural(images.num_copies, 'identical file')} {were} left out: each image counts once.")
    if config.data.groups or config.data.group_column:
        notes.append(
            "The images of a group are in the same fold. The intervals treat images as independent, so they are too "
            "narrow if the images of a group are alike."
        )
    if repeats > 1:
        notes.append(f"Counts of images are means over {repeats} repeats of the cross-validation.")
    if num_candidates > 2:
        notes.append(
            f"The p-values are adjusted for {num_candidates - 1} comparisons (Holm). The intervals are not adjusted."
        )
    return notes


def _fixed_sizes(wanted: Sequence[Wanted], sizes: Sequence[int]) -> list[str]:
    return [
        f"{one.backbone.name} computes images of {one.image_size} pixels only, so it took part with that size alone."
        for one in wanted
        if one.backbone.fixed_size and sizes and list(sizes) != [one.image_size]
    ]


def _write(choice: Choice, out: Path) -> None:
    """choose.json last: it marks the folder as complete."""
    from headstart.selection.page import choose_page

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; name another place") from None
    for name, content in (("choose.html", choose_page(choice)), ("choose.json", choice.to_json() + "\n")):
        write_atomically(out / name, lambda path, content=content: path.write_text(content, encoding="utf-8"))  # type: ignore[misc]
