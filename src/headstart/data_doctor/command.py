"""`headstart data check`: every image, every pair, every label of a source; told, and written as a report."""

import sys
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from headstart.config import RunConfig
from headstart.data.samples import Source
from headstart.data.sources.folders import ClassFolders
from headstart.data.sources.open import open_source
from headstart.data_doctor.balance import copies, scoped
from headstart.data_doctor.check import Checked, Good, check_files
from headstart.data_doctor.duplicates import Pair, candidates, confirmed, joined
from headstart.data_doctor.findings import KINDS, MAYBE, Finding, number_of
from headstart.data_doctor.fixes import write_fixes, write_groups
from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.wording import listed, shown

REPORT_FILES = ("doctor.json", "doctor.html", "fixes.csv", "groups.csv")


@dataclass(frozen=True)
class Report:
    """All that was found. `findings` in the order of KINDS; `notes`: what could not be looked at, and why.

    cluster_of: of each sha256, the cluster of near-copies that it belongs to.
    labels: of the study of labels, None without it: images, accuracy out of fold, estimated share of wrong labels.
    """

    checked: Checked
    findings: list[Finding]
    notes: list[str]
    labels: dict[str, Any] | None
    cluster_of: dict[str, np.int64]

    def counts(self) -> Counter[str]:
        return Counter(finding.kind for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        checked = self.checked
        return {
            "headstart": version("headstart"),
            "root": checked.source.root,
            "files": checked.num_files,
            "images": len(checked.good),
            "classes": {"/".join(filter(None, key)): count for key, count in sorted(checked.counts.items())},
            "census": asdict(checked.census),
            "counts": dict(self.counts()),
            "labels": self.labels,
            "notes": self.notes,
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_command(config: RunConfig, *, labels: bool, out: str | None) -> Report:
    """Check config.data.root, print a summary and write the report. Raises InputError before the work if it cannot be."""
    if out is not None:
        _check_report_folder(Path(out), Path(config.data.root))
    report = inspect(config, labels=labels)
    _print(report)
    if out is not None:
        write_report(report, Path(out))
        print(f"{out}: {', '.join(REPORT_FILES)}")
        source = report.checked.source
        if report.findings and isinstance(source, ClassFolders):
            print(
                f"next: edit {out}/fixes.csv, then headstart data apply {out}/fixes.csv --data {source.root} --out NEW"
            )
    return report


def inspect(config: RunConfig, *, labels: bool) -> Report:
    """The checks in order: files and folders, exact copies, near-copies, and the labels if asked."""
    warnings.filterwarnings("ignore", module="PIL")  # what it warns of is decoded all the same, or is a finding
    checked = _check_with_progress(open_source(config.data, to_measure=True))
    findings = checked.findings + copies((image.sha256, image.file) for image in checked.good)
    distinct = list({image.sha256: image for image in reversed(checked.good)}.values())[::-1]
    pairs = candidates(np.array([image.hashes for image in distinct])) if distinct else []
    looked_at = distinct if labels else [distinct[i] for i in sorted({i for p in pairs for i in (p.first, p.second)})]
    features = features_of_images(config, checked.source, looked_at) if looked_at else np.empty((0, 0))
    row_of = {image.sha256: row for row, image in enumerate(looked_at)}
    places = [row_of.get(image.sha256, -1) for image in distinct]  # index of a pair -> row of the features
    pairs = confirmed(pairs, features, rows=np.array(places, dtype=np.int64))
    cluster_of = dict(zip((d.sha256 for d in distinct), joined([d.sha256 for d in distinct], pairs), strict=True))
    findings += _near_copies(checked, pairs, cluster_of, [d.sha256 for d in distinct])
    notes: list[str] = []
    study = None
    if labels:
        suspected, study = _labels(config, checked, features, row_of, cluster_of, notes)
        findings += suspected
    order = {kind: position for position, kind in enumerate(KINDS)}
    findings.sort(key=lambda finding: order[finding.kind])  # stable: within a kind as found
    return Report(checked, findings, notes, study, cluster_of)


def _check_with_progress(source: Source) -> Checked:
    from rich.console import Console
    from rich.progress import Progress

    if not sys.stderr.isatty():
        return check_files(source)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("files", total=None)
        return check_files(source, progress=lambda done: progress.advance(task, done))


def features_of_images(config: RunConfig, source: Source, images: list[Good]) -> np.ndarray:
    """float32 (n, 512) of the evaluation view, by way of the feature bank."""
    from headstart.data.transforms import Preprocess
    from headstart.features.extraction import Row, bank_transforms, features_of, fill
    from headstart.features.training_set import describe_extraction, open_bank, trunk_of
    from headstart.model.weights import obtain_weights
    from headstart.runtime.accelerator import set_threads, start_accelerator
    from headstart.runtime.precision import choose_precision
    from headstart.runtime.signals import StopRequest

    set_threads(config.runtime.threads)
    accelerator = start_accelerator(config.runtime)
    precision, _ = choose_precision(config.runtime.mixed_precision, accelerator.device)
    config = replace(config, runtime=replace(config.runtime, mixed_precision=precision))  # type: ignore[arg-type]
    weights, spec = obtain_weights(accelerator, config.model.weights), Preprocess.of(config.data)
    bank = open_bank(accelerator, config, weights, spec)
    transform = bank_transforms(config.data, spec, augmented_copies=0, seed=config.seed)[0]
    rows = [Row(image.file.path, image.sha256, transform, source) for image in images]
    trunk = trunk_of(accelerator, config, weights)
    with StopRequest() as stop:
        extraction = fill(accelerator, bank, rows, spec, trunk, num_workers=config.data.num_workers, stop=stop)
    print(describe_extraction(extraction, bank))
    return np.asarray(features_of(bank, rows)[:])


def _near_copies(
    checked: Checked, pairs: list[Pair], cluster_of: dict[str, np.int64], contents: list[str]
) -> list[Finding]:
    """A finding per cluster of two contents or more; all files of these contents belong to it."""
    mirrored = {cluster_of[contents[pair.first]] for pair in pairs if pair.mirrored}
    groups: dict[np.int64, list[Good]] = {}
    for image in checked.good:
        groups.setdefault(cluster_of[image.sha256], []).append(image)
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
) -> tuple[list[Finding], dict[str, Any] | None]:
    """Suspected wrong labels, and what the study says of the whole. Classes too small to hold anything out are left out."""
    from headstart.data_doctor.label_noise import study_labels

    owners_of: dict[str, set[np.int64]] = {}
    for image in checked.good:
        owners_of.setdefault(image.file.label, set()).add(cluster_of[image.sha256])
    classes = sorted(label for label, owners in owners_of.items() if len(owners) >= 2)
    small = sorted(set(owners_of) - set(classes))
    if small:
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
        message = f"looks like {other} ({suspect.p_suggested:.0%}), is called {file.label} ({suspect.p_given:.0%})"
        in_part = file.split and isinstance(checked.source, ClassFolders)
        target = f"{file.path.split('/')[0]}/{other}" if in_part else other
        found.append(Finding.of("suspected_label", file.path, message, f"{MAYBE} {target}"))
    wrong = float(1 - np.trace(study.joint))
    return found, {"images": len(images), "accuracy": study.accuracy, "estimated_wrong": wrong, "classes": classes,
                   "joint": study.joint.tolist()}  # fmt: skip


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    for line in summary_lines(report):
        console.print(line)
    if not report.findings:
        console.print("nothing found that is wrong")
        return
    table = Table("what", "how many", "for example")
    for kind, count in report.counts().items():
        one = next(finding for finding in report.findings if finding.kind == kind)
        table.add_row(KINDS[kind].title, number_of(kind, count), f"{listed(one.paths, limit=2)}: {shown(one.message)}")
    Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140).print(table)


def summary_lines(report: Report) -> list[str]:
    """What the folder is, fault or not."""
    checked, census = report.checked, report.checked.census
    labels = {label for _, label in checked.counts}
    lines = [
        f"{shown(checked.source.root)}: {checked.num_files} files, {len(checked.good)} images that can be used, {len(labels)} classes"
    ]
    if checked.good:
        assert census.smallest is not None
        assert census.median is not None
        assert census.largest is not None
        sizes = ", ".join(f"{name} {size[0]}x{size[1]}" for name, size in
                          (("smallest", census.smallest), ("median", census.median), ("largest", census.largest)))  # fmt: skip
        lines.append(f"formats: {_counted(census.formats)}; colour modes: {_counted(census.modes)}")
        lines.append(f"sizes, px: {sizes}; rotated by EXIF: {census.rotated}")
    if report.labels is not None:
        lines.append(
            f"labels: a probe agrees out of fold with {100 * report.labels['accuracy']:.1f} % of {report.labels['images']}; an "
            f"estimated {100 * report.labels['estimated_wrong']:.1f} % at most are wrong: to a probe, hard images look the same"
        )
    return lines + report.notes


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _check_report_folder(out: Path, root: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if any((out / name).exists() for name in REPORT_FILES):
        raise InputError(f"--out {out} holds a report already, perhaps with edited fixes; name another folder")
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"--out {out} lies inside the data; name a place outside {root}")


def write_report(report: Report, out: Path) -> None:
    """REPORT_FILES in `out`, each whole or not at all."""
    import json

    from headstart.data_doctor.page import doctor_page

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; name another place") from None
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=True) + "\n"  # escapes: a name may be no UTF-8
    write_atomically(out / "doctor.json", lambda path: path.write_text(text, encoding="utf-8"))
    page = doctor_page(
        report.checked.source.root,
        report.checked.source.read,
        report.findings,
        summary_lines(report),
        report.checked.counts,
        files=report.checked.num_files,
    )
    write_atomically(out / "doctor.html", lambda path: path.write_text(page, encoding="utf-8"))
    write_fixes(out / "fixes.csv", report.findings)
    clusters = [(image.file.path, int(report.cluster_of[image.sha256])) for image in report.checked.good]
    sizes = Counter(cluster for _, cluster in clusters)
    write_groups(out / "groups.csv", [(path, cluster) for path, cluster in clusters if sizes[cluster] > 1])
