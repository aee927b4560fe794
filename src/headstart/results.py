"""The results that the public functions return: `Evaluation`, `Comparison`, `Choice`, `Verification`, `Export`,
`DataReport`.

Every result is a frozen dataclass of plain Python values. Each has `to_dict()`, which contains only values that JSON
has, and `to_json()`, the text that the command of the same name writes. Intervals are 95% confidence intervals, written
as (low, high). Accuracies, precision, recall and probabilities lie between 0 and 1. Imports neither numpy nor torch.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from headstart.wording import headline, plural, shown


@dataclass(frozen=True)
class GoldenInput:
    """A drawn test image.

    Attributes:
        name: what is unusual about it.
        mode: mode of Pillow, such as "RGB" or "I;16".
        width: px.
        height: px.
        orientation: EXIF orientation; 1 is upright.
        format: "PNG" or "JPEG".
    """

    name: str
    mode: str
    width: int
    height: int
    orientation: int = 1
    format: str = "PNG"


@dataclass(frozen=True)
class GoldenCheck:
    """One golden input on this machine.

    Attributes:
        drawing: the golden input.
        difference: largest absolute difference of a logit.
        tolerance: largest allowed difference.
        decoded: whether the decoded RGB image is identical to the bit.
        transform: whether the pixels that the network receives are identical to the bit.
    """

    drawing: GoldenInput
    difference: float
    tolerance: float
    decoded: bool
    transform: bool

    @property
    def passed(self) -> bool:
        """Whether the difference is within its tolerance and the pixels are identical. The pixels of the JPEG file may
        differ, because JPEG decoders may differ in the last bit."""
        same = self.transform or (self.drawing.format == "JPEG" and not self.decoded)
        return same and self.difference <= self.tolerance


@dataclass(frozen=True, repr=False)
class Verification:
    """Whether this machine reproduces the reference outputs of a model file; true if everything passed.

    Attributes:
        model: path of the model file.
        device: such as "cpu".
        versions: versions of the libraries here, by name.
        written_with: versions of the libraries that wrote the file, by name.
        checks: by precision ("fp32", "bf16", "fp16"), one check per golden input.
        tensors_unchanged: whether the weights have the stored hash; None if the file has no hash of them.
    """

    model: str
    device: str
    versions: Mapping[str, str]
    written_with: Mapping[str, str]
    checks: Mapping[str, tuple[GoldenCheck, ...]]
    tensors_unchanged: bool | None

    @property
    def passed(self) -> bool:
        """Whether the weights are unchanged and every golden input passed in every precision."""
        return self.tensors_unchanged is not False and not self.failed

    @property
    def failed(self) -> tuple[GoldenCheck, ...]:
        """The checks that did not pass."""
        return tuple(check for checks in self.checks.values() for check in checks if not check.passed)

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """The content of `headstart verify --json`."""
        checks = {
            precision: [asdict(check) | {"passed": check.passed} for check in checks]
            for precision, checks in self.checks.items()
        }
        return {
            "model": self.model,
            "device": self.device,
            "versions": {"here": dict(self.versions), "then": dict(self.written_with)},
            "checks": checks,
            "tensors": self.tensors_unchanged,
            "passed": self.passed,
        }

    def to_json(self) -> str:
        """The text of `headstart verify --json`."""
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        parts = [] if self.tensors_unchanged is not False else ["the weights have changed"]
        for precision, checks in self.checks.items():
            num_failed = sum(not check.passed for check in checks)
            largest = f"largest logit difference {max(check.difference for check in checks):.2g}" if checks else ""
            parts.append(
                f"{precision} {num_failed} of {len(checks)} failed" if num_failed else f"{precision} {largest}"
            )
        return f"Verification({'passed' if self else 'FAILED'} on {self.device}: {'; '.join(parts)})"


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class.

    Attributes:
        precision: 0 to 1; None if the class is never predicted.
        precision_ci95: Wilson's interval; None if the class is never predicted.
        recall: 0 to 1; None if the class has no images.
        recall_ci95: Wilson's interval; None if the class has no images.
        n: number of images of the class.
    """

    precision: float | None
    precision_ci95: tuple[float, float] | None
    recall: float | None
    recall_ci95: tuple[float, float] | None
    n: int


class SkippedFile(NamedTuple):
    """A file that was not used.

    Attributes:
        path: relative to the root of the data.
        reason: why it was not used.
    """

    path: str
    reason: str


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Metrics of a model on labelled images.

    Attributes:
        n: number of images.
        correct: number of images that are classified correctly.
        accuracy: correct / n.
        balanced_accuracy: mean recall of the classes that have images.
        macro_f1: mean F1 of the classes that have images or are predicted.
        top5_accuracy: share of images whose class is among the five most probable; None for five classes or fewer.
        loss: mean cross-entropy, nats.
        accuracy_ci95: Wilson's interval.
        balanced_accuracy_ci95: interval of the balanced accuracy.
        loss_ci95: bootstrap interval; None if the loss does not vary within the classes.
        brier: Brier score, 0 to 2.
        brier_ci95: bootstrap interval; None if the score does not vary within the classes.
        ece: debiased expected calibration error, 0 to 1.
        ece_by_chance95: the value that 95% of perfectly calibrated models do not exceed on so many images.
        per_class: by class name, in the order of the model.
        confusion_matrix: (C, C) numbers of images; rows are true classes, columns predicted classes.
        skipped: files that were not evaluated.
    """

    n: int
    correct: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    top5_accuracy: float | None
    loss: float
    accuracy_ci95: tuple[float, float]
    balanced_accuracy_ci95: tuple[float, float]
    loss_ci95: tuple[float, float] | None
    brier: float
    brier_ci95: tuple[float, float] | None
    ece: float
    ece_by_chance95: float
    per_class: Mapping[str, ClassMetrics]
    confusion_matrix: tuple[tuple[int, ...], ...]
    skipped: tuple[SkippedFile, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of `confusion_matrix`."""
        return tuple(self.per_class)

    def to_dict(self) -> dict[str, Any]:
        """The content of `headstart evaluate --out`."""
        values: dict[str, Any] = _json_values(asdict(self))
        del values["skipped"]
        if self.top5_accuracy is None:
            del values["top5_accuracy"]
        return values

    def to_json(self) -> str:
        """The text of `headstart evaluate --out`. Raises ValueError for NaN and infinity."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"Evaluation({headline(vars(self))} correct{skipped})"


@dataclass(frozen=True)
class ComparedRun:
    """A run on the compared images.

    Attributes:
        path: run folder.
        strategy: such as "fine_tune".
        backbone: such as "resnet18".
        n: number of images.
        correct: number of images that are classified correctly.
        accuracy: correct / n.
        accuracy_ci95: Wilson's interval.
        loss: mean cross-entropy, nats.
    """

    path: str
    strategy: str
    backbone: str
    n: int
    correct: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    loss: float


@dataclass(frozen=True)
class Disagreement:
    """An image for which two runs predict different classes.

    Attributes:
        path: of the image, relative to the root of the data.
        label: true class.
        first: class that the first run predicts.
        first_probability: its probability.
        second: class that the second run predicts.
        second_probability: its probability.
        correct: which of the two is correct: "first", "second" or "neither".
    """

    path: str
    label: str
    first: str
    first_probability: float
    second: str
    second_probability: float
    correct: Literal["first", "second", "neither"]


@dataclass(frozen=True)
class PairedComparison:
    """Two runs on the same images. Differences are second - first.

    Attributes:
        first: folder of the first run.
        second: folder of the second run.
        n: number of images.
        gained: images that only the second run classifies correctly.
        lost: images that only the first run classifies correctly.
        difference: difference of the accuracies.
        ci95: Newcombe's interval of `difference`.
        loss_difference: difference of the mean cross-entropies, nats.
        loss_ci95: interval of a paired bootstrap; None if the difference does not vary within the classes.
        p_value: of the exact McNemar test.
        p_holm: `p_value` adjusted for the number of comparisons (Holm).
        verdict: "better" or "worse" if p_holm < 0.05, else "not proven".
        images_needed: number of images that would detect the observed difference with a power of 0.8; None if the
            accuracies are equal.
        disagreements: the images for which the two predict different classes.
    """

    first: str
    second: str
    n: int
    gained: int
    lost: int
    difference: float
    ci95: tuple[float, float]
    loss_difference: float
    loss_ci95: tuple[float, float] | None
    p_value: float
    p_holm: float
    verdict: Literal["better", "worse", "not proven"]
    images_needed: int | None
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def points(self) -> str:
        """'+15.0 points [+7.4, +23.2]': the difference of the accuracies."""
        low, high = self.ci95
        return f"{100 * self.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"

    def in_words(self) -> str:
        """One or two sentences."""
        evidence = (
            f"accuracy {self.points}, {self.gained} gained and {self.lost} lost of {plural(self.n, 'image')}, "
            f"p = {self.p_holm:.2g}"
        )
        if self.verdict != "not proven":
            return f"{self.second} is {self.verdict} than {self.first}: {evidence}"
        sentence = f"No significant difference between {self.second} and {self.first}: {evidence}. "
        if self.images_needed is None:
            return sentence + "Both have the same accuracy, so the number of images needed cannot be estimated."
        return sentence + (
            f"About {self.images_needed:,} images would detect a true difference of this size with 80% power."
        )

    def loss_in_words(self) -> str:
        """'+0.0123 [-0.0100, +0.0400]', or without an interval if there is none."""
        if self.loss_ci95 is None:
            return f"{self.loss_difference:+.4f} (no interval: it does not vary)"
        low, high = self.loss_ci95
        return f"{self.loss_difference:+.4f} [{low:+.4f}, {high:+.4f}]"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Finished runs on the same images.

    Attributes:
        runs: in the order of the arguments.
        comparisons: each other run against the first one, in the order of `runs`.
        notes: what affects the meaning of the numbers.
    """

    runs: tuple[ComparedRun, ...]
    comparisons: tuple[PairedComparison, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of `headstart compare --json`."""
        pairs = []
        for comparison in self.comparisons:
            values = asdict(comparison)
            found = values.pop("disagreements")
            pairs.append(values | {"in_words": comparison.in_words(), "disagreements": found})
        values = {"runs": [asdict(run) for run in self.runs], "comparisons": pairs, "notes": self.notes}
        return {key: _json_values(value) for key, value in values.items()}

    def to_json(self) -> str:
        """The text of `headstart compare --json`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def __repr__(self) -> str:
        first = self.runs[0]
        lines = [f"Comparison({plural(first.n, 'image')}, first: {first.path} with accuracy {first.accuracy:.1%}"]
        for run, pair in list(zip(self.runs[1:], self.comparisons, strict=True))[:3]:
            lines.append(
                f"{run.path}: accuracy {run.accuracy:.1%}, {pair.points}, p = {pair.p_holm:.2g}, {pair.verdict}"
            )
        if len(self.comparisons) > 3:
            lines.append(f"and {len(self.comparisons) - 3} more")
        return "\n  ".join(lines) + ")"


@dataclass(frozen=True)
class Candidate:
    """A backbone at one image size, with a linear probe on its features.

    Attributes:
        name: such as "lite0 at 224 px".
        backbone: as `model.backbone`.
        weights: as `model.weights`.
        image_size: side of the square network input, px.
        correct: number of images that are classified correctly in cross-validation, the mean over its repeats.
        accuracy: correct / n.
        accuracy_ci95: Wilson's interval.
        loss: mean cross-entropy, nats.
        selected_share: share of the outer folds for which the other folds select this candidate.
        parameters: number of parameters with the head.
        file_bytes: size of the tensors of a model file, bytes.
        predict_images_per_s: speed of the network in prediction, on images in memory.
        train_images_per_s: speed of fine-tuning all parameters, on images in memory.
    """

    name: str
    backbone: str
    weights: str
    image_size: int
    correct: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    loss: float
    selected_share: float
    parameters: int
    file_bytes: int
    predict_images_per_s: float
    train_images_per_s: float


@dataclass(frozen=True, repr=False)
class Choice:
    """The backbone that suits a data set best, among candidates.

    Attributes:
        data: source of the images.
        classes: the class names.
        n: number of training images.
        folds: of the cross-validation.
        repeats: of the cross-validation, each with other folds.
        seed: of the folds.
        machine: device, precision and processes of the speeds.
        chosen: name of the candidate with the highest accuracy.
        expected_accuracy: accuracy of a frozen head on the chosen candidate, from nested cross-validation. The accuracy
            in `candidates` is too high for the chosen one, because it is the highest of several.
        expected_ci95: Wilson's interval.
        candidates: the most accurate first.
        comparisons: the chosen candidate (`second`) against each other one (`first`).
        command: the command that trains a frozen head on the chosen candidate.
        notes: what affects the meaning of the numbers.
    """

    data: str
    classes: tuple[str, ...]
    n: int
    folds: int
    repeats: int
    seed: int
    machine: str
    chosen: str
    expected_accuracy: float
    expected_ci95: tuple[float, float]
    candidates: tuple[Candidate, ...]
    comparisons: tuple[PairedComparison, ...]
    command: str
    notes: tuple[str, ...]

    def verdict(self, candidate: Candidate) -> str:
        """ "chosen", or the comparison of the chosen candidate with this one: "better" or "not proven"."""
        verdicts = {comparison.first: comparison.verdict for comparison in self.comparisons}
        return verdicts.get(candidate.name, "chosen")

    def in_words(self) -> str:
        """The choice and its expected accuracy, in two or three sentences."""
        low, high = self.expected_ci95
        text = f"Chosen: {self.chosen}. "
        ties = [comparison.first for comparison in self.comparisons if comparison.verdict == "not proven"]
        if ties:
            text += f"It is not proven to be better than {' or '.join(ties)}. "
        how = "nested cross-validation" if len(self.candidates) > 1 else "cross-validation"
        return text + (
            f"Expected accuracy of a frozen head on new images: {self.expected_accuracy:.1%} "
            f"[{low:.1%}, {high:.1%}] ({how})."
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of choose.json and of `headstart choose --json`."""
        values = asdict(self)
        for row, comparison in zip(values["comparisons"], self.comparisons, strict=True):
            del row["disagreements"]
            row["in_words"] = comparison.in_words()
        return {key: _json_values(value) for key, value in values.items()}

    def to_json(self) -> str:
        """The text of choose.json. Raises ValueError for NaN and infinity."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Choice":
        """The result that `to_json` has written. Raises ValueError for any other text."""
        try:
            values = json.loads(text)
            for row in values["comparisons"]:
                del row["in_words"]
            values["candidates"] = tuple(Candidate(**_tuples(row)) for row in values["candidates"])
            values["comparisons"] = tuple(PairedComparison(**_tuples(row)) for row in values["comparisons"])
            return Choice(**_tuples(values))
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a result of headstart choose: {error}") from None

    def __repr__(self) -> str:
        lines = [f"Choice({self.in_words()}"]
        for candidate in self.candidates[:4]:
            lines.append(f"{candidate.name}: accuracy {candidate.accuracy:.1%}, {self.verdict(candidate)}")
        if len(self.candidates) > 4:
            lines.append(f"and {len(self.candidates) - 4} more")
        return "\n  ".join(lines) + ")"


class ExportRefused(Exception):
    """The exported model does not reproduce the predictions of the original, so nothing was written. The message names
    the difference."""


@dataclass(frozen=True)
class Agreement:
    """Probabilities of an exported model and of the original on the same images.

    Attributes:
        n: number of images.
        largest: largest difference of a probability.
        mean: mean over the images of the largest difference per image.
        at: the image with the largest difference.
        same_class: number of images with the same most probable class.
    """

    n: int
    largest: float
    mean: float
    at: str
    same_class: int


@dataclass(frozen=True)
class Parity:
    """The comparison with the original that an exported model has passed.

    Attributes:
        tolerance: largest allowed difference of a probability on drawn images; for int8 of the mean difference.
        drawn: on drawn images of unusual sizes and modes.
        visible: by mistake in preprocessing, the largest difference that it would have caused on drawn images.
        validation: on validation images of the run; None if they were not compared.
        correct_before: validation images that the original classifies correctly.
        correct: validation images that the exported model classifies correctly.
        not_validated: why validation images were not compared; None if they were.
    """

    tolerance: float
    drawn: Agreement
    visible: Mapping[str, float]
    validation: Agreement | None = None
    correct_before: int | None = None
    correct: int | None = None
    not_validated: str | None = None

    @property
    def loss(self) -> float:
        """Loss of accuracy on the validation images, 0.01 is one percentage point; 0 without validation images."""
        if self.validation is None or self.correct is None or self.correct_before is None:
            return 0.0
        return (self.correct_before - self.correct) / self.validation.n

    @property
    def blind_to(self) -> list[str]:
        """Mistakes in preprocessing that the drawn images would not have shown with this model."""
        return [name for name, difference in self.visible.items() if difference <= self.tolerance]


@dataclass(frozen=True, repr=False)
class Export:
    """An exported model whose predictions agree with those of the original.

    Attributes:
        path: the file or folder.
        format: such as "onnx".
        description: what the format is, in a few words.
        parity: the comparison with the original.
        record: the content of the parity file, which lies in the exported folder or beside the exported file.
    """

    path: Path
    format: str
    description: str
    parity: Parity
    record: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the outputs."""
        return tuple(self.record["classes"])

    @property
    def temperature(self) -> float:
        """The logits are divided by it in the exported head, so the probabilities are calibrated; 1 if they are not."""
        return float(self.record["temperature"])

    def to_dict(self) -> dict[str, Any]:
        """The content of the parity file."""
        values: dict[str, Any] = _json_values(self.record)
        return values

    def to_json(self) -> str:
        """The text of the parity file."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def __repr__(self) -> str:
        drawn, seen = self.parity.drawn, self.parity.validation
        lines = [
            f"Export({self.format}, {self.path}",
            f"drawn images: largest difference of a probability {drawn.largest:.1e}, n = {drawn.n}",
            "validation images: not compared"
            if seen is None
            else f"validation images: same class for {seen.same_class} of {seen.n}",
        ]
        return "\n  ".join(lines) + ")"


@dataclass(frozen=True)
class Finding:
    """One problem, or one group of files that share it.

    Attributes:
        kind: such as "duplicate_across_splits".
        paths: with "/", relative to the root of the data.
        message: what is wrong.
        suggestions: for each path "keep", "drop", "move FOLDER" or "move? FOLDER". Only `headstart data apply` acts on
            them.
    """

    kind: str
    paths: tuple[str, ...]
    message: str
    suggestions: tuple[str, ...]

    @staticmethod
    def of(kind: str, path: str, message: str, suggestion: str = "drop") -> "Finding":
        """A problem of one file."""
        return Finding(kind, (path,), message, (suggestion,))


@dataclass(frozen=True)
class Census:
    """Counts of the usable images; nothing here is a problem.

    Attributes:
        formats: images by file format.
        modes: images by mode of Pillow.
        rotated: images that are rotated by EXIF when they are decoded.
        smallest: (width, height) of the smallest image by area, px; None if there is no usable image.
        median: (width, height) of the image of median area, px.
        largest: (width, height) of the largest image by area, px.
    """

    formats: Mapping[str, int]
    modes: Mapping[str, int]
    rotated: int
    smallest: tuple[int, int] | None
    median: tuple[int, int] | None
    largest: tuple[int, int] | None


@dataclass(frozen=True)
class LabelCheck:
    """A cross-validated linear probe against the given labels.

    Attributes:
        images: number of images.
        accuracy: share of images for which the probe agrees with the label.
        estimated_wrong: estimated largest share of wrong labels; hard images count as wrong.
        classes: names of the classes that were studied.
        joint: (C, C) estimated shares of images by given class (row) and true class (column), in the order of
            `classes`.
    """

    images: int
    accuracy: float
    estimated_wrong: float
    classes: tuple[str, ...]
    joint: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, repr=False)
class DataReport:
    """The result of the data checks.

    Attributes:
        headstart: version of headstart.
        root: the data.
        num_files: number of files that were read.
        num_images: number of usable images among them.
        classes: class names, sorted.
        images_per_class: usable images by split and class, such as "train/ants"; zeros included.
        census: formats, modes and sizes of the usable images.
        label_check: None if it was not requested or not possible.
        notes: what could not be checked, and why.
        findings: the problems, the most serious kinds first.
        is_image_folder: whether `headstart data apply` can act on the suggestions.
    """

    headstart: str
    root: str
    num_files: int
    num_images: int
    classes: tuple[str, ...]
    images_per_class: Mapping[str, int]
    census: Census
    label_check: LabelCheck | None
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    is_image_folder: bool

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings by kind, in the order of `findings`."""
        return dict(Counter(finding.kind for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """The content of doctor.json, which `headstart data check --out` writes."""
        values = {
            "headstart": self.headstart,
            "root": self.root,
            "files": self.num_files,
            "images": self.num_images,
            "classes": self.images_per_class,
            "census": asdict(self.census),
            "counts": self.counts,
            "labels": None if self.label_check is None else asdict(self.label_check),
            "notes": self.notes,
            "findings": [asdict(finding) for finding in self.findings],
        }
        return {key: _json_values(value) for key, value in values.items()}

    def to_json(self) -> str:
        """The text of doctor.json. Non-ASCII characters are escaped, because a file name may not be valid UTF-8."""
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        described = (
            f"DataReport({shown(self.root)}: {plural(self.num_files, 'file')}, "
            f"{plural(self.num_images, 'usable image')}, {plural(len(self.classes), 'class', 'classes')}"
        )
        if not self.findings:
            return f"{described}, no problems found)"
        kinds = [f"{number} {kind}" for kind, number in self.counts.items()]
        more = f" and {len(kinds) - 4} more kinds" if len(kinds) > 4 else ""
        return f"{described}\n  {plural(len(self.findings), 'finding')}: {', '.join(kinds[:4])}{more})"


def _json_values(value: Any) -> Any:
    """Tuples become lists, as in JSON."""
    if isinstance(value, Mapping):
        return {key: _json_values(inner) for key, inner in value.items()}
    return [_json_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists become tuples, as in the results."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
