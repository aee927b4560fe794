"""Runs compared statistically on the same validation images. Knows no torch."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import InputError
from headstart.evaluation.statistics import bootstrap, holm, images_needed, log_losses, paired
from headstart.runs.files import damaged, has, labels_and_probabilities, read_json, read_table

POWER, LEVEL = 0.8, 0.05
NAMED = 3  # images that a message names


@dataclass(frozen=True)
class Measured:
    """A finished run on its validation images. keys: (content, label, number of the copy) of each; labels: (n,) int64;
    probabilities: (n, C) float64, in the order of `classes`; choices: among how many epochs these images chose."""

    path: str
    strategy: str
    classes: tuple[str, ...]
    keys: list[tuple[str, str, int]]
    paths: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    choices: int

    @property
    def predicted(self) -> np.ndarray:
        """(n,) int64."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def is_correct(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray(self.predicted == self.labels)

    def only(self, keys: Sequence[tuple[str, str, int]]) -> "Measured":
        """The same run on these images, in this order."""
        place = {key: row for row, key in enumerate(self.keys)}
        rows = [place[key] for key in keys]
        return replace(
            self,
            keys=list(keys),
            paths=[self.paths[row] for row in rows],
            labels=self.labels[rows],
            probabilities=self.probabilities[rows],
        )

    def in_order(self, classes: Sequence[str]) -> "Measured":
        """The same run with its classes in this order."""
        columns = [self.classes.index(name) for name in classes]
        place = np.argsort(columns)
        return replace(
            self, classes=tuple(classes), labels=place[self.labels], probabilities=self.probabilities[:, columns]
        )


@dataclass(frozen=True)
class Comparison:
    """`second` against `first`. difference: of the accuracies, second - first, with Newcombe's 95 % interval; loss_difference:
    of the mean log losses, with that of a paired bootstrap; p_value: exact McNemar, p_holm: adjusted for the number of
    comparisons; images_needed: to find the difference, were it as seen, with a probability of 0.8."""

    first: str
    second: str
    n: int
    gained: int
    lost: int
    difference: float
    ci95: tuple[float, float]
    loss_difference: float
    loss_ci95: tuple[float, float] | None  # None: it does not vary
    p_value: float
    p_holm: float
    verdict: str  # better, worse, not proven
    images_needed: int | None

    def in_words(self) -> str:
        """One or two sentences."""
        low, high = self.ci95
        p = f"p = {self.p_holm:.2g}"
        seen = (
            f"accuracy {100 * self.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], {self.gained} gained and "
            f"{self.lost} lost of {self.n} images, {p}"
        )
        if self.verdict != "not proven":
            return f"{self.second} is {self.verdict} than {self.first}: {seen}"
        sentence = f"Not proven with {self.n} images that {self.second} and {self.first} differ: {seen}. "
        if self.images_needed is None:
            return sentence + "They are right equally often, so nothing says how many images would show a difference."
        return sentence + (
            f"If the difference is what was seen, about {self.images_needed:,} images would show it (four times out of five)."
        )

    def loss_in_words(self) -> str:
        """'+0.0123 [-0.0100, +0.0400]', or without an interval where there is none."""
        if self.loss_ci95 is None:
            return f"{self.loss_difference:+.4f} (no interval: it does not vary)"
        low, high = self.loss_ci95
        return f"{self.loss_difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def compare(runs: Sequence[Measured]) -> list[Comparison]:
    """Every other run against the first one. The runs must have the same keys in the same order."""
    first = runs[0]
    found = [paired(first.is_correct.tolist(), other.is_correct.tolist()) for other in runs[1:]]
    adjusted = holm([result.p_value for result in found])
    first_losses = log_losses(first.probabilities, first.labels)
    comparisons = []
    for other, result, p_holm in zip(runs[1:], found, adjusted, strict=True):
        losses = log_losses(other.probabilities, other.labels) - first_losses
        proven = p_holm < LEVEL
        verdict = ("better" if result.difference > 0 else "worse") if proven else "not proven"
        comparisons.append(
            Comparison(
                first=first.path,
                second=other.path,
                n=len(first.keys),
                gained=result.gained,
                lost=result.lost,
                difference=result.difference,
                ci95=result.ci95,
                loss_difference=float(losses.mean()),
                loss_ci95=bootstrap(losses, first.labels),
                p_value=result.p_value,
                p_holm=p_holm,
                verdict=verdict,
                images_needed=images_needed(
                    gained=result.gained, lost=result.lost, total=len(first.keys), power=POWER, level=LEVEL / len(found)
                ),
            )
        )
    return comparisons


def read_measured(run: str) -> Measured:
    """A finished run folder. Raises InputError if it is none, or damaged."""
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"{run} is not a folder; name a finished run folder")
    summary = read_json(folder, "summary.json")
    if "runs" in summary and not (folder / "predictions.parquet").exists():
        raise InputError(f"{run} holds repeated runs that share their validation images; name one of them, such as "
                         f"{folder / summary['runs'][0]['folder']}")  # fmt: skip
    manifest, predictions = read_table(folder, "manifest.parquet"), read_table(folder, "predictions.parquet")
    file = folder / "predictions.parquet"
    try:
        classes = tuple(json.loads(predictions.schema.metadata[b"classes"]))
        content = dict(zip(manifest.column("id").to_pylist(), manifest.column("sha256").to_pylist(), strict=True))
        contents = [content[name] for name in predictions.column("id").to_pylist()]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} does not fit its manifest.parquet ({error}); use a copy that is whole") from None
    labels = predictions.column("label").to_pylist()
    codes, probabilities = labels_and_probabilities(file, predictions, classes)
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for pair in zip(contents, labels, strict=True):
        seen[pair] += 1
        keys.append((*pair, seen[pair]))
    choices = has(folder / "summary.json", summary, ["strategy", "epochs"])["epochs"]
    if not isinstance(choices, int):
        raise damaged(folder / "summary.json", f"epochs is {choices!r}")
    return Measured(
        path=run,
        strategy=str(summary["strategy"]),
        classes=classes,
        keys=keys,
        paths=predictions.column("path").to_pylist(),
        labels=codes,
        probabilities=probabilities,
        choices=choices,
    )


def on_the_same_images(runs: Sequence[Measured], *, common: bool) -> list[Measured]:
    """The runs with their images in the order of the first one's. Raises InputError, which counts and names the differences,
    unless they are the same ones; common: leaves out what not all have."""
    first = runs[0]
    for other in runs[1:]:
        if sorted(other.classes) != sorted(first.classes):
            raise InputError(
                f"{other.path} knows the classes {', '.join(other.classes)} and {first.path} {', '.join(first.classes)}; "
                "only runs with the same classes can be compared"
            )
    runs = [first, *(other.in_order(first.classes) for other in runs[1:])]
    shared = set(first.keys).intersection(*(other.keys for other in runs[1:]))
    if not common:
        for other in runs[1:]:
            if set(other.keys) != set(first.keys):
                raise InputError(_differences(first, other, num_shared=len(shared)))
    if not shared:
        raise InputError(f"{' and '.join(run.path for run in runs)} have no validation image in common")
    keys = [key for key in first.keys if key in shared]
    return [run.only(keys) for run in runs]


def disagreements(first: Measured, second: Measured) -> list[dict[str, Any]]:
    """The images that the two call by different names: path, label, and what each says how surely."""
    classes = first.classes
    found = []
    for row in np.flatnonzero(first.predicted != second.predicted).tolist():
        a, b, truth = int(first.predicted[row]), int(second.predicted[row]), int(first.labels[row])
        found.append(
            {
                "path": first.paths[row],
                "label": classes[truth],
                "first": classes[a],
                "first_probability": float(first.probabilities[row, a]),
                "second": classes[b],
                "second_probability": float(second.probabilities[row, b]),
                "right": "first" if a == truth else "second" if b == truth else "neither",
            }
        )
    return found


def _differences(first: Measured, other: Measured, *, num_shared: int) -> str:
    """One sentence: how many images, and the first ones by name."""
    mine, theirs = Counter(key[:2] for key in first.keys), Counter(key[:2] for key in other.keys)
    labels = {content: label for content, label in theirs}
    relabelled = {content for content, label in mine if content in labels and (content, label) not in theirs}
    parts = []
    for run, extra in ((first, mine - theirs), (other, theirs - mine)):
        rows = [
            path for path, key in zip(run.paths, run.keys, strict=True) if key[:2] in extra and key[0] not in relabelled
        ]
        if rows:
            more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            parts.append(f"{len(rows)} only in {run.path} ({', '.join(rows[:NAMED])}{more})")
    if relabelled:
        rows = [path for path, key in zip(first.paths, first.keys, strict=True) if key[0] in relabelled]
        parts.append(f"{len(relabelled)} with another label ({', '.join(rows[:NAMED])})")
    hint = f"; --common compares the {num_shared} that all have" if num_shared else ""
    return f"{first.path} and {other.path} were not measured on the same images: {', '.join(parts)}{hint}"
