"""The checks of a source in order: every file, exact copies, near copies, and on request the labels."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np

from headstart.config import RunConfig
from headstart.data.manifest import refusals
from headstart.data.source import Source
from headstart.data.sources.folders import ClassFolders
from headstart.data.sources.open import open_source
from headstart.data_doctor.balance import copies, folder_of, scoped
from headstart.data_doctor.check import Checked, check_files
from headstart.data_doctor.duplicates import candidates, confirmed, joined
from headstart.data_doctor.examine import Good
from headstart.data_doctor.findings import KEEP, KINDS, MAYBE, Finding
from headstart.data_doctor.mirrored_classes import find_mirrored_classes, in_words
from headstart.messages import LOG
from headstart.results import DataReport, LabelCheck
from headstart.wording import listed, one_line

_OF_CLASSES = ("empty_class", "class_in_one_split")
Progress = Callable[[], AbstractContextManager[Callable[[int], object] | None]]
"""A context whose value is called in threads with the number of files just done (1), or None."""


@dataclass(frozen=True)
class Report:
    """The result of all checks. cluster_of: the cluster of near copies of each sha256."""

    checked: Checked
    result: DataReport
    cluster_of: dict[str, np.int64]


def inspect(config: RunConfig, *, labels: bool, progress: Progress = nullcontext) -> Report:
    """Run the checks on config.data.root. progress: for the time in which the files are read.
    Raises InputError if there is nothing to check."""
    source = open_source(config.data, to_evaluate=True)
    with progress() as advance:
        checked = check_files(source, progress=advance)
    findings = checked.findings + copies((image.sha256, image.file) for image in checked.good)
    distinct = list({image.sha256: image for image in reversed(checked.good)}.values())[::-1]
    contents = [image.sha256 for image in distinct]
    pairs = candidates(np.array([image.hashes for image in distinct])) if distinct else []
    needed = distinct if labels else [distinct[i] for i in sorted({i for p in pairs for i in (p.first, p.second)})]
    notes: list[str] = []
    features: np.ndarray | None = None
    try:
        features = features_of_images(config, source, needed) if needed else np.empty((0, 0))
    except (OSError, RuntimeError, MemoryError) as error:  # the rest of the report is sound without them
        notes.append(f"near copies were not searched for: {one_line(error)}")
    row_of = {image.sha256: row for row, image in enumerate(needed)}
    rows = np.array([row_of.get(sha256, -1) for sha256 in contents], dtype=np.int64)  # of the features
    pairs = [] if features is None else confirmed(pairs, features, rows=rows)
    cluster_of = dict(zip(contents, joined(contents, pairs), strict=True))
    findings += _near_copies(checked, {cluster_of[contents[pair.first]] for pair in pairs if pair.mirrored}, cluster_of)
    findings += _refused(config, checked) + _mirrored(config, checked, distinct, notes)
    label_check = None
    if labels and features is None:
        notes.append("labels were not studied: there are no features")
    elif labels and features is not None:
        suspected, label_check = _labels(config, checked, features, row_of, cluster_of, notes)
        findings += suspected
    order = list(KINDS)
    result = DataReport(
        headstart=version("headstart"),
        root=source.root,
        num_files=checked.num_files,
        num_images=len(checked.good),
        classes=tuple(sorted({label for _, label in checked.counts})),
        images_per_class={folder_of(*key): count for key, count in sorted(checked.counts.items())},
        census=checked.census,
        label_check=label_check,
        notes=tuple(notes),
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.kind))),  # stable within a kind
        is_image_folder=isinstance(source, ClassFolders),
    )
    return Report(checked, result, cluster_of)


def _refused(config: RunConfig, checked: Checked) -> list[Finding]:
    """The reasons why training refuses the images, without those that are findings already."""
    known = {path.split("/")[-1] for f in checked.findings if f.kind in _OF_CLASSES for path in f.paths}
    reasons = refusals(checked.source, config.data, {i.file.path: i.sha256 for i in checked.good}, seed=config.seed)
    found = []
    for label, reason in reasons.items():
        if label in known or (not label and {f.kind for f in checked.findings} & {"missing_split", "empty_class"}):
            continue
        single = not label and len({name for _, name in checked.counts}) == 1
        kind = "single_class" if single else "refused"
        name = checked.good[0].file.label if single else label or checked.source.root
        found.append(Finding.of(kind, name, reason, KEEP))
    return found


def _mirrored(config: RunConfig, checked: Checked, images: Sequence[Good], notes: list[str]) -> list[Finding]:
    """Pairs of classes that a flip makes equal. images: one per content."""
    paths: dict[str, list[str]] = defaultdict(list)
    for image in images:
        if image.file.split != "test":
            paths[image.file.label].append(image.file.path)
    try:
        pairs = find_mirrored_classes(checked.source, paths)
    except (OSError, ValueError, MemoryError) as error:
        notes.append(f"mirrored classes were not searched for: {one_line(error)}")
        return []
    flips = {"hflip": config.data.hflip, "vflip": config.data.vflip}
    return [
        Finding("mirrored_classes", (one.first, one.second), in_words(one, flips[one.axis]), (KEEP, KEEP))
        for one in pairs
    ]


def features_of_images(config: RunConfig, source: Source, images: Sequence[Good]) -> np.ndarray:
    """float32 (n, d), of the evaluation transform, through the feature bank.

    The number of torch threads is restored afterwards."""
    import torch

    from headstart.data.transforms import Preprocess
    from headstart.features.extraction import Row, bank_transforms, features_of, fill
    from headstart.features.training_set import describe_extraction, open_bank, trunk_of
    from headstart.model.backbones import find_backbone
    from headstart.model.weights import obtain_weights
    from headstart.runtime.accelerator import set_threads, start_accelerator
    from headstart.runtime.precision import choose_precision
    from headstart.runtime.signals import StopRequest

    threads = torch.get_num_threads()
    set_threads(config.runtime.threads)
    try:
        accelerator = start_accelerator(config.runtime)
        precision, _ = choose_precision(config.runtime.mixed_precision, accelerator.device)
        config = replace(config, runtime=replace(config.runtime, mixed_precision=precision))  # type: ignore[arg-type]
        backbone = find_backbone(config.model.backbone)
        weights = obtain_weights(accelerator, config.model.weights, backbone)
        spec = Preprocess.of(config.data, backbone)
        bank = open_bank(accelerator, config, weights, spec)
        transform = bank_transforms(config.data, spec, augmented_copies=0, seed=config.seed)[0]
        rows = [Row(image.file.path, image.sha256, transform, source) for image in images]
        trunk = trunk_of(accelerator, config, weights)
        with StopRequest() as stop:
            extraction = fill(accelerator, bank, rows, spec, trunk, num_workers=config.data.num_workers, stop=stop)
    finally:
        torch.set_num_threads(threads)
    LOG.info(describe_extraction(extraction, bank))
    return np.asarray(features_of(bank, rows)[:])


def _near_copies(checked: Checked, mirrored: set[np.int64], cluster_of: dict[str, np.int64]) -> list[Finding]:
    """A finding for each cluster of two contents or more, with all files of these contents. mirrored: clusters with a
    mirrored pair."""
    groups: dict[np.int64, list[Good]] = defaultdict(list)
    for image in checked.good:
        groups[cluster_of[image.sha256]].append(image)
    found = []
    for number, group in groups.items():
        if len({image.sha256 for image in group}) > 1:
            what = "nearly the same image, mirrored," if number in mirrored else "nearly the same image"
            found += scoped("near_duplicate", sorted((image.file for image in group), key=lambda f: f.path), what)
    return found


def _labels(
    config: RunConfig,
    checked: Checked,
    features: np.ndarray,
    row_of: dict[str, int],
    cluster_of: dict[str, np.int64],
    notes: list[str],
) -> tuple[list[Finding], LabelCheck | None]:
    """Suspected wrong labels, and the overall results. Classes too small for cross-validation are left out, with a
    note."""
    from headstart.data_doctor.label_noise import study_labels

    clusters: dict[str, set[np.int64]] = defaultdict(set)
    for image in checked.good:
        clusters[image.file.label].add(cluster_of[image.sha256])
    classes = sorted(label for label, found in clusters.items() if len(found) >= 2)
    if small := sorted(clusters.keys() - set(classes)):
        notes.append(f"labels of {listed(small)} were not studied: fewer than two different images")
    images = [image for image in checked.good if image.file.label in classes]
    if len(classes) < 2:
        notes.append("labels were not studied: that takes two classes of two different images")
        return [], None
    try:
        study = study_labels(
            features[[row_of[image.sha256] for image in images]],
            np.array([classes.index(image.file.label) for image in images]),
            [str(cluster_of[image.sha256]) for image in images],
            num_classes=len(classes),
            folds=config.probe.folds,
            seed=config.seed,
        )
    except ValueError as error:
        notes.append(f"labels were not studied: {error}")
        return [], None
    found = []
    for suspect in study.suspects:
        file, other = images[suspect.index].file, classes[suspect.suggested]
        message = f"looks like {other} ({suspect.p_suggested:.0%}), is labelled {file.label} ({suspect.p_given:.0%})"
        in_split = file.split and isinstance(checked.source, ClassFolders)
        target = f"{file.path.split('/')[0]}/{other}" if in_split else other
        found.append(Finding.of("suspected_label", file.path, message, f"{MAYBE} {target}"))
    return found, LabelCheck(
        images=len(images),
        accuracy=study.accuracy,
        estimated_wrong=float(1 - np.trace(study.joint)),
        classes=tuple(classes),
        joint=tuple(map(tuple, study.joint.tolist())),
    )
