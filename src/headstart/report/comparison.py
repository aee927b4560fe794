"""Statistical comparison of finished runs on the same validation images. Knows no torch."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from headstart.backbones import RESNET18
from headstart.config_io import check_single_run
from headstart.errors import InputError
from headstart.evaluation.metrics import log_losses
from headstart.evaluation.statistics import bootstrap, holm, images_needed, paired, wilson
from headstart.results import ComparedRun, Disagreement, PairedComparison
from headstart.runs.files import damaged, labels_and_probabilities, mapping_with, read_json, read_table
from headstart.wording import listed, plural

POWER, LEVEL = 0.8, 0.05


@dataclass(frozen=True)
class EvaluatedRun:
    """The predictions of a run on its validation images. keys: (SHA-256 of the content, label, number of the copy) of
    each image; labels: (n,) int64; probabilities: (n, C) float64 in the order of `classes`; num_choices: the number of
    epochs of which these images selected one."""

    path: str
    strategy: str
    backbone: str
    classes: tuple[str, ...]
    keys: list[tuple[str, str, int]]
    paths: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    num_choices: int

    @property
    def predicted(self) -> np.ndarray:
        """(n,) int64."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def is_correct(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray(self.predicted == self.labels)

    def result(self) -> ComparedRun:
        n, correct = len(self.keys), int(self.is_correct.sum())
        return ComparedRun(
            path=self.path,
            strategy=self.strategy,
            backbone=self.backbone,
            n=n,
            correct=correct,
            accuracy=correct / n,
            accuracy_ci95=wilson(correct, n),
            loss=float(log_losses(self.probabilities, self.labels).mean()),
        )

    def aligned(self, classes: Sequence[str], keys: Sequence[tuple[str, str, int]]) -> "EvaluatedRun":
        """The same run on these images, with images and classes in this order."""
        place = {key: row for row, key in enumerate(self.keys)}
        rows = [place[key] for key in keys]
        columns = [self.classes.index(name) for name in classes]
        return replace(
            self,
            classes=tuple(classes),
            keys=list(keys),
            paths=[self.paths[row] for row in rows],
            labels=np.argsort(columns)[self.labels[rows]],
            probabilities=self.probabilities[np.ix_(rows, columns)],
        )


def compare(runs: Sequence[EvaluatedRun]) -> list[PairedComparison]:
    """Every other run against the first one. The runs must have the same keys in the same order."""
    first = runs[0]
    tests = [paired(first.is_correct.tolist(), other.is_correct.tolist()) for other in runs[1:]]
    adjusted = holm([test.p_value for test in tests])
    first_losses = log_losses(first.probabilities, first.labels)
    comparisons = []
    for other, test, p_holm in zip(runs[1:], tests, adjusted, strict=True):
        losses = log_losses(other.probabilities, other.labels) - first_losses
        n, level = len(first.keys), LEVEL / len(tests)
        comparisons.append(
            PairedComparison(
                first=first.path,
                second=other.path,
                n=n,
                **asdict(test),
                loss_difference=float(losses.mean()),
                loss_ci95=bootstrap(losses, first.labels),
                p_holm=p_holm,
                verdict="not proven" if p_holm >= LEVEL else "better" if test.difference > 0 else "worse",
                images_needed=images_needed(gained=test.gained, lost=test.lost, total=n, power=POWER, level=level),
                disagreements=disagreements(first, other),
            )
        )
    return comparisons


def read_evaluated_run(path: str) -> EvaluatedRun:
    """The predictions of a finished run. Raises InputError if the folder holds none, or if it is damaged."""
    folder = Path(path)
    if not (folder / "predictions.parquet").exists():
        check_single_run(folder)
    summary = read_json(folder, "summary.json")
    manifest, predictions = read_table(folder, "manifest.parquet"), read_table(folder, "predictions.parquet")
    try:
        classes = tuple(json.loads(predictions.schema.metadata[b"classes"]))
        content = dict(zip(manifest.column("id").to_pylist(), manifest.column("sha256").to_pylist(), strict=True))
        contents = [content[name] for name in predictions.column("id").to_pylist()]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / "predictions.parquet", f"it does not fit manifest.parquet: {error}") from None
    labels, probabilities = labels_and_probabilities(folder / "predictions.parquet", predictions, classes)
    copies: Counter[tuple[str, str]] = Counter()
    keys = []
    for image in zip(contents, predictions.column("label").to_pylist(), strict=True):
        copies[image] += 1
        keys.append((*image, copies[image]))
    epochs = mapping_with(folder / "summary.json", summary, ["strategy", "epochs"])["epochs"]
    if not isinstance(epochs, int):
        raise damaged(folder / "summary.json", f"epochs is {epochs!r}")
    return EvaluatedRun(
        path=path,
        strategy=str(summary["strategy"]),
        backbone=str(summary.get("backbone", RESNET18.name)),
        classes=classes,
        keys=keys,
        paths=predictions.column("path").to_pylist(),
        labels=labels,
        probabilities=probabilities,
        num_choices=epochs,
    )


def on_the_same_images(runs: Sequence[EvaluatedRun], *, common: bool) -> list[EvaluatedRun]:
    """The runs with classes and images in the order of the first one. common: only the images of all runs.

    Raises InputError with the numbers and names of the differences if the images are not the same."""
    first = runs[0]
    for other in runs[1:]:
        if sorted(other.classes) != sorted(first.classes):
            raise InputError(
                f"{other.path} has the classes {', '.join(other.classes)} and {first.path} has "
                f"{', '.join(first.classes)}; only runs with the same classes can be compared"
            )
    shared = set(first.keys).intersection(*(other.keys for other in runs[1:]))
    if not common:
        for other in runs[1:]:
            if set(other.keys) != set(first.keys):
                raise InputError(_differences(first, other, num_shared=len(shared)))
    if not shared:
        raise InputError(f"{' and '.join(run.path for run in runs)} have no validation image in common")
    keys = [key for key in first.keys if key in shared]
    return [run.aligned(first.classes, keys) for run in runs]


def disagreements(first: EvaluatedRun, second: EvaluatedRun) -> tuple[Disagreement, ...]:
    classes = first.classes
    found = []
    for row in np.flatnonzero(first.predicted != second.predicted).tolist():
        a, b, label = int(first.predicted[row]), int(second.predicted[row]), int(first.labels[row])
        found.append(
            Disagreement(
                path=first.paths[row],
                label=classes[label],
                first=classes[a],
                first_probability=float(first.probabilities[row, a]),
                second=classes[b],
                second_probability=float(second.probabilities[row, b]),
                correct="first" if a == label else "second" if b == label else "neither",
            )
        )
    return tuple(found)


def _differences(first: EvaluatedRun, other: EvaluatedRun, *, num_shared: int) -> str:
    """One sentence: the number of images, and the names of the first ones."""
    images, other_images = Counter(key[:2] for key in first.keys), Counter(key[:2] for key in other.keys)
    contents = {content for content, _ in other_images}
    relabelled = {content for content, label in images if content in contents and (content, label) not in other_images}
    parts = []
    for run, extra in ((first, images - other_images), (other, other_images - images)):
        rows = zip(run.paths, run.keys, strict=True)
        paths = [path for path, key in rows if key[:2] in extra and key[0] not in relabelled]
        if paths:
            parts.append(f"{len(paths)} only in {run.path} ({listed(paths)})")
    if relabelled:
        paths = [path for path, key in zip(first.paths, first.keys, strict=True) if key[0] in relabelled]
        parts.append(f"{len(relabelled)} with another label ({listed(paths)})")
    hint = f"; --common compares the {plural(num_shared, 'image')} of all runs" if num_shared else ""
    return f"{first.path} and {other.path} were not evaluated on the same images: {', '.join(parts)}{hint}"
