"""Predictions of a finished model. Everything they depend on is read from the model file."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from headstart.config import DEVICES, PRECISIONS
from headstart.data.decode import UnreadableImage
from headstart.data.transforms import Preprocess
from headstart.errors import InputError
from headstart.model.backbones import find_backbone
from headstart.model.conformal import CONFIDENCE
from headstart.model.find_model import find_model
from headstart.model.forward import FrozenNetwork
from headstart.model.model_file import ModelInfo, load_tensors
from headstart.model.open_set import WRONGLY_FLAGGED
from headstart.model.softmax import softmax
from headstart.predict.image_inputs import One, each, rgb_image
from headstart.predict.image_paths import images as images_in
from headstart.runtime.accelerator import best_device
from headstart.runtime.precision import choose_precision
from headstart.wording import plural


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image. If the image cannot be read, `error` is the reason and the rest is None or
    empty.

    path: as it was given, None for an image in memory. probabilities: in the order of the classes, summing to 1.
    top: (class, probability), the most probable first. prediction_set, none_of_these and distance: None unless the
    model file is calibrated; none_of_these also if there were too few validation images for a limit. embedding: (d,)
    float32, the pooled features, if requested."""

    path: str | None
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    top: tuple[tuple[str, float], ...] = ()
    prediction_set: tuple[str, ...] | None = None
    none_of_these: bool | None = None
    distance: float | None = None
    embedding: np.ndarray | None = None
    error: str | None = None

    def __repr__(self) -> str:
        result = f"error: {self.error}" if self.error else f"{self.label} {self.probability:.1%}"
        return f"Prediction({f'{self.path}: ' if self.path else ''}{result})"


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What to compute for each image.

    top: number of classes in `Prediction.top`. embeddings: whether to keep the features. calibrated: whether to
    divide the logits by the temperature of the model file, if it has one. confidence: of the prediction set.
    wrongly_flagged: share of images of the known classes that may be flagged as none of these. The last two must be
    among the values that the model file has thresholds for."""

    top: int = 5
    embeddings: bool = False
    calibrated: bool = True
    confidence: float = CONFIDENCE
    wrongly_flagged: float = WRONGLY_FLAGGED


@dataclass(frozen=True)
class Outputs:
    """What the network computes for n images.

    features: (n, d) float32, pooled. logits: (n, C) float32. maps: of the last stage, on the device; None where they
    were not kept."""

    features: np.ndarray
    logits: np.ndarray
    maps: torch.Tensor | None = None


@dataclass(frozen=True)
class BatchPredictions:
    """The predictions for n images.

    probabilities: (n, C) float64. best: (n, top) int, class indices, the most probable first. inside: (n, C) bool,
    whether a class is in the prediction set. none_of_these: (n,) bool, None without a limit. distance: (n,) float64.
    embeddings: (n, d) float32."""

    probabilities: np.ndarray
    best: np.ndarray
    inside: np.ndarray | None
    none_of_these: np.ndarray | None
    distance: np.ndarray | None
    embeddings: np.ndarray | None


class Predictor:
    """A model file. Preprocessing, class names, precision and form of the network are those of the file, so the
    logits are those that its metrics were computed from."""

    def __init__(
        self, run: str | os.PathLike[str], *, device: str | torch.device | None = None, precision: str = "measured"
    ) -> None:
        """run: run folder or model file. device: None for the GPU if there is one. precision: measured (that of the
        file; fp16 becomes fp32 where there is no GPU), fp32, bf16, fp16 or auto (the fastest that this device
        multiplies natively).

        Raises InputError."""
        self.path = find_model(run)
        tensors, self.info = load_tensors(self.path)
        self.device = _device(device)
        self.precision = _precision(precision, self.info, self.device)
        self.backbone = find_backbone(self.info.backbone)
        self._network = FrozenNetwork(
            tensors,
            self.backbone,
            precision=self.precision,
            device=self.device,
            folded=self.info.measured_on == "feature bank",
            channels_last=self.info.channels_last,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.info.classes

    def __repr__(self) -> str:
        precision = "fp32" if self.precision == "no" else self.precision
        return f"Predictor({str(self.path)!r}: {plural(len(self.classes), 'class')}, {precision} on {self.device})"

    def __dir__(self) -> list[str]:
        """What completion offers: the documented part."""
        return ["classes", "device", "info", "path", "precision", "predict", "transform"]

    def predict(
        self,
        images: "One | Iterable[One]",
        *,
        errors: Literal["raise", "row"] = "raise",
        top: int = 5,
        embeddings: bool = False,
        calibrated: bool = True,
        confidence: float = CONFIDENCE,
        wrongly_flagged: float = WRONGLY_FLAGGED,
        batch_size: int = 16,
    ) -> list[Prediction]:
        """One prediction per image, in order.

        images: path of an image or of a folder (all image files below it, sorted by path), PIL image, content of a file
        as bytes, array or tensor, or an iterable of these (`headstart.predict.image_inputs` has the shapes). errors:
        "raise" raises InputError for the first image that cannot be read, "row" returns a prediction with its `error`.
        Other options: `PredictionOptions`. batch_size: images per forward pass.

        Raises InputError for anything that is not an image, and for options that the model file does not support."""
        if errors not in ("raise", "row"):
            raise InputError(f"errors is {errors!r}; it must be 'raise' or 'row'")
        options = PredictionOptions(
            top=top,
            embeddings=embeddings,
            calibrated=calibrated,
            confidence=confidence,
            wrongly_flagged=wrongly_flagged,
        )
        self.check(options)
        _check_count("batch_size", batch_size)
        waiting = _without_folders(each(images))
        found: list[Prediction] = []
        while batch := list(islice(waiting, batch_size)):
            pixels, reasons = decode_batch(batch, self.info.preprocess)
            predictions = self.predictions(self.compute(pixels), options)
            rows = iter(range(len(pixels)))
            for image, reason in zip(batch, reasons, strict=True):
                path = str(image) if isinstance(image, str | Path) else None
                if reason is not None and errors == "raise":
                    raise InputError(
                        f"{path or f'image {len(found)}'} cannot be read ({reason}); errors='row' returns such images "
                        "as rows with an error"
                    )
                if reason is None:
                    found.append(self.prediction(predictions, next(rows), path))
                else:
                    found.append(Prediction(path=path, error=reason))
        return found

    def transform(self, image: One) -> torch.Tensor:
        """uint8 (3, S, S): the input of the network for one image. Raises UnreadableImage, OSError and InputError."""
        found = list(islice(each(image), 2))
        if len(found) != 1:
            raise InputError("transform takes one image, not several in one array; use predict")
        return self.info.preprocess.resize_and_crop(rgb_image(found[0], self.info.preprocess))

    def compute(self, pixels: torch.Tensor) -> Outputs:
        """uint8 (n, 3, S, S), as `transform` gives them -> features and logits."""
        if not len(pixels):
            width = self.backbone.features
            return Outputs(np.zeros((0, width), np.float32), np.zeros((0, len(self.classes)), np.float32))
        maps = self._network.maps(self.info.preprocess.normalize(pixels.to(self.device)))
        features, logits = self._network.head(maps)
        return Outputs(features.cpu().numpy(), logits.cpu().numpy(), maps)

    def attention(self, outputs: Outputs) -> np.ndarray | None:
        """float32 (n, h, w) in [0, 1]: Grad-CAM of the most probable class of each image. None for a network whose
        last layer has no maps."""
        assert outputs.maps is not None, "the maps were not kept"
        heat = self._network.attention(outputs.maps, torch.from_numpy(outputs.logits.argmax(axis=1)))
        return None if heat is None else heat.cpu().numpy()

    def check(self, options: PredictionOptions) -> None:
        """Raise InputError for options that this model file does not support."""
        _check_count("top", options.top)
        try:  # with no images
            self.predictions(self.compute(torch.empty((0, 3, 1, 1), dtype=torch.uint8)), options)
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path}: {error}") from None

    def predictions(self, outputs: Outputs, options: PredictionOptions) -> BatchPredictions:
        """The predictions from outputs. Raises ValueError for a share that the model file has no threshold for."""
        calibration = self.info.calibration
        if calibration is not None and options.calibrated:
            probabilities = calibration.probabilities(outputs.logits)
        else:
            probabilities = softmax(outputs.logits)
        inside = flagged = distance = None
        if calibration is not None:
            inside = calibration.prediction_sets(outputs.logits, confidence=options.confidence)
            flagged = calibration.is_none_of_these(outputs.features, wrongly_flagged=options.wrongly_flagged)
            distance = calibration.distance(outputs.features)
        return BatchPredictions(
            probabilities,
            np.argsort(-probabilities, axis=1, kind="stable")[:, : options.top],
            inside,
            flagged,
            distance,
            outputs.features if options.embeddings else None,
        )

    def prediction(self, batch: BatchPredictions, row: int, path: str | None) -> Prediction:
        """One image of a batch, with the names of the classes."""
        values = batch.probabilities[row].tolist()
        top = tuple((self.classes[code], values[code]) for code in batch.best[row])
        inside = None if batch.inside is None else batch.inside[row]
        return Prediction(
            path=path,
            label=top[0][0],
            probability=top[0][1],
            probabilities=dict(zip(self.classes, values, strict=True)),
            top=top,
            prediction_set=None if inside is None else tuple(self.classes[code] for code in np.flatnonzero(inside)),
            none_of_these=None if batch.none_of_these is None else bool(batch.none_of_these[row]),
            distance=None if batch.distance is None else float(batch.distance[row]),
            embedding=None if batch.embeddings is None else batch.embeddings[row].copy(),
        )


def _without_folders(images: Iterable[One]) -> Iterator[One]:
    """The same images, with those below a folder in its place. Raises InputError for a folder without images."""
    for image in images:
        if isinstance(image, str | Path) and Path(image).is_dir():
            yield from (listed.path for listed in images_in([str(image)]))
        else:
            yield image


def decode_batch(images: Sequence[One], spec: Preprocess) -> tuple[torch.Tensor, list[str | None]]:
    """uint8 (m, 3, S, S), channels last, of the images that can be decoded; for each image the reason if not, else
    None."""
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


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _device(requested: "str | torch.device | None") -> torch.device:
    if requested is None:
        return best_device()
    try:
        device = torch.device(requested)
        if device.type not in DEVICES:
            raise RuntimeError(f"it must be one of {', '.join(DEVICES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"device {requested} cannot be used here ({reason}); use cpu or leave it out") from None
    return device


def _precision(requested: str, info: ModelInfo, device: torch.device) -> str:
    if requested not in PRECISIONS:
        raise InputError(f"precision is {requested}; it must be one of {', '.join(PRECISIONS)}")
    if requested == "fp16" and device.type != "cuda":
        raise InputError(f"precision fp16 needs a CUDA GPU and this is {device.type}; use bf16 or fp32")
    if requested == "auto":
        return choose_precision("auto", device)[0]
    if requested == "measured":
        return "no" if info.mixed_precision == "fp16" and device.type != "cuda" else info.mixed_precision
    return "no" if requested == "fp32" else requested
