"""A finished model, ready to be asked: everything it needs is read from its file, and nothing is imported that it does not need."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from headstart.data.decode import UnreadableImage
from headstart.data.transforms import Preprocess
from headstart.errors import InputError
from headstart.model.conformal import CONFIDENCE
from headstart.model.forward import form_of
from headstart.model.frozen_trunk import FEATURES
from headstart.model.gradcam import heat
from headstart.model.model_file import ModelInfo, find_model, load_tensors
from headstart.model.open_set import WRONGLY_FLAGGED
from headstart.model.softmax import softmax
from headstart.predict.image_inputs import One, each, rgb_image
from headstart.runtime.accelerator import best_device
from headstart.runtime.precision import choose_precision

DEVICES = ("cpu", "cuda", "mps", "xpu")
PRECISIONS = ("measured", "fp32", "bf16", "fp16", "auto")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one image; `error` says why it says nothing, and then the rest is None or empty.

    path: as it was given, None for an image in memory. probabilities: in the model's class order, summing to 1.
    top: (class, probability), the most probable first. prediction_set, none_of_these and distance: None unless the model file
    holds what they are computed from. embedding: (512,) float32, the pooled features, if it was asked for."""

    path: str | None
    label: str | None
    probability: float | None
    probabilities: dict[str, float] | None
    top: tuple[tuple[str, float], ...]
    prediction_set: tuple[str, ...] | None = None
    none_of_these: bool | None = None
    distance: float | None = None
    embedding: np.ndarray | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is wanted of each image.

    top: so many classes by name; embeddings: the features too; calibrated: probabilities by the temperature of the model file, if it has
    one; confidence: of the prediction set; wrongly_flagged: the share of images of the classes that may be called none of these. The last
    two must be among those that the model file holds limits for."""

    top: int = 5
    embeddings: bool = False
    calibrated: bool = True
    confidence: float = CONFIDENCE
    wrongly_flagged: float = WRONGLY_FLAGGED


@dataclass(frozen=True)
class Outputs:
    """features: (n, 512) float32, the pooled features; logits: (n, C) float32; maps: (n, 512, S/32, S/32), which the features are the
    means of, on the device; None where they were not kept."""

    features: np.ndarray
    logits: np.ndarray
    maps: torch.Tensor | None = None


@dataclass(frozen=True)
class Answers:
    """Of n images. probabilities: (n, C) float64; best: (n, top) int, codes of classes, the most probable first; inside: (n, C) bool,
    whether a class is in the prediction set; none_of_these: (n,) bool; distance: (n,) float64; embeddings: (n, 512) float32."""

    probabilities: np.ndarray
    best: np.ndarray
    inside: np.ndarray | None
    none_of_these: np.ndarray | None
    distance: np.ndarray | None
    embeddings: np.ndarray | None


class Predictor:
    """A model file. Preprocessing, class names, precision and the form of the computation are those of the file, so the logits
    are those that its metrics were measured with."""

    def __init__(
        self, run: str | Path, *, device: str | torch.device | None = None, precision: str = "measured"
    ) -> None:
        """run: run folder or model file. device: None for the GPU if there is one. precision: measured (that of the file; fp16 is
        computed in fp32 where there is no GPU), fp32, bf16, fp16 or auto (the fastest that this device multiplies natively).

        Raises InputError."""
        self.path = find_model(run)
        tensors, self.info = load_tensors(self.path)
        self.device = _device(device)
        self.precision = _precision(precision, self.info, self.device)
        self._form = form_of(
            tensors,
            measured_on=self.info.measured_on,
            precision=self.precision,
            channels_last=self.info.channels_last,
            device=self.device,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    def predict(
        self,
        images: "One | Iterable[One]",
        *,
        top: int = 5,
        embeddings: bool = False,
        calibrated: bool = True,
        confidence: float = CONFIDENCE,
        wrongly_flagged: float = WRONGLY_FLAGGED,
        batch_size: int = 16,
    ) -> list[Prediction]:
        """One prediction per image, in order. What counts as an image: `headstart.predict.image_inputs`; the options: `Question`.

        An image that cannot be decoded gives a prediction with `error`. Raises InputError for what is no image at all."""
        question = Question(
            top=top,
            embeddings=embeddings,
            calibrated=calibrated,
            confidence=confidence,
            wrongly_flagged=wrongly_flagged,
        )
        self.check(question)
        _check_count("batch_size", batch_size)
        waiting = each(images)
        found: list[Prediction] = []
        while batch := list(islice(waiting, batch_size)):
            pixels, reasons = decode_batch(batch, self.info.preprocess)
            answers = self.answer(self.compute(pixels), question)
            rows = iter(range(len(pixels)))
            for image, reason in zip(batch, reasons, strict=True):
                path = str(image) if isinstance(image, str | Path) else None
                found.append(self.named(answers, next(rows), path) if reason is None else _unread(path, reason))
        return found

    def transform(self, image: One) -> torch.Tensor:
        """uint8 (3, S, S): what the network sees of one image. Raises UnreadableImage with the reason, OSError and InputError."""
        found = list(islice(each(image), 2))
        if len(found) != 1:
            raise InputError("view takes one image, not several in one array; use predict")
        return self.info.preprocess.resize_and_crop(rgb_image(found[0], self.info.preprocess))

    def compute(self, pixels: torch.Tensor) -> Outputs:
        """uint8 (n, 3, S, S) as `view` makes them -> features and logits."""
        if not len(pixels):
            no_features, no_logits = np.zeros((0, FEATURES), np.float32), np.zeros((0, len(self.classes)), np.float32)
            return Outputs(no_features, no_logits, torch.zeros((0, FEATURES, 1, 1)))
        maps = self._form.maps(self.info.preprocess.normalize(pixels.to(self.device)))
        features, logits = self._form.head(maps)
        return Outputs(features.cpu().numpy(), logits.cpu().numpy(), maps)

    def attention(self, outputs: Outputs) -> np.ndarray:
        """float32 (n, S/32, S/32) in [0, 1]: where each image speaks for its most probable class (Grad-CAM)."""
        assert outputs.maps is not None, "the maps were not kept"
        weights = self._form.weight[torch.from_numpy(outputs.logits.argmax(axis=1)).to(self._form.weight.device)]
        return np.asarray(heat(outputs.maps, weights.float().to(outputs.maps.device)).cpu().numpy())

    def check(self, question: Question) -> None:
        """Raises InputError for what this model cannot be asked."""
        _check_count("top", question.top)
        try:  # of no images at all
            self.answer(self.compute(torch.empty((0, 3, 1, 1), dtype=torch.uint8)), question)
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path}: {error}") from None

    def answer(self, outputs: Outputs, question: Question) -> Answers:
        """What is asked, of images whose outputs are known. Raises ValueError for a share that the model file has no limit for."""
        calibration = self.info.calibration
        if calibration is not None and question.calibrated:
            probabilities = calibration.probabilities(outputs.logits)
        else:
            probabilities = softmax(outputs.logits)
        inside = flagged = distance = None
        if calibration is not None:
            inside = calibration.prediction_sets(outputs.logits, confidence=question.confidence)
            flagged = calibration.is_none_of_these(outputs.features, wrongly_flagged=question.wrongly_flagged)
            distance = calibration.distance(outputs.features)
        return Answers(
            probabilities,
            np.argsort(-probabilities, axis=1, kind="stable")[:, : question.top],
            inside,
            flagged,
            distance,
            outputs.features if question.embeddings else None,
        )

    def named(self, answers: Answers, row: int, path: str | None) -> Prediction:
        """One image of the answers."""
        values = answers.probabilities[row].tolist()
        top = tuple((self.classes[code], values[code]) for code in answers.best[row])
        inside = None if answers.inside is None else answers.inside[row]
        return Prediction(
            path=path,
            label=top[0][0],
            probability=top[0][1],
            probabilities=dict(zip(self.classes, values, strict=True)),
            top=top,
            prediction_set=None if inside is None else tuple(self.classes[code] for code in np.flatnonzero(inside)),
            none_of_these=None if answers.none_of_these is None else bool(answers.none_of_these[row]),
            distance=None if answers.distance is None else float(answers.distance[row]),
            embedding=None if answers.embeddings is None else answers.embeddings[row].copy(),
        )


def decode_batch(images: Sequence[One], spec: Preprocess) -> tuple[torch.Tensor, list[str | None]]:
    """uint8 (m, 3, S, S), channels last, of the images that can be decoded; and for each image why it cannot, or None."""
    side = spec.image_size
    pixels = torch.empty((len(images), side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    reasons: list[str | None] = []
    count = 0
    for image in images:
        try:
            pixels[count] = spec.resize_and_crop(rgb_image(image, spec))
        except (UnreadableImage, OSError) as error:
            reasons.append((error.strerror or str(error)) if isinstance(error, OSError) else str(error))
        else:
            reasons.append(None)
            count += 1
    return pixels[:count], reasons


def _unread(path: str | None, reason: str) -> Prediction:
    return Prediction(path=path, label=None, probability=None, probabilities=None, top=(), error=reason)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _device(asked: "str | torch.device | None") -> torch.device:
    if asked is None:
        return best_device()
    try:
        device = torch.device(asked)
        if device.type not in DEVICES:
            raise RuntimeError(f"it must be one of {', '.join(DEVICES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"device {asked} cannot be used here ({reason}); use cpu or leave it out") from None
    return device


def _precision(asked: str, info: ModelInfo, device: torch.device) -> str:
    """no, bf16 or fp16."""
    if asked not in PRECISIONS:
        raise InputError(f"precision is {asked}; it must be one of {', '.join(PRECISIONS)}")
    if asked == "fp16" and device.type != "cuda":
        raise InputError(f"precision fp16 needs a CUDA GPU and this is {device.type}; use bf16 or fp32")
    if asked == "auto":
        return choose_precision("auto", device)[0]
    if asked == "measured":
        return "no" if info.mixed_precision == "fp16" and device.type != "cuda" else info.mixed_precision
    return "no" if asked == "fp32" else asked
