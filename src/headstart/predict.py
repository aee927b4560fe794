"""A finished model, ready to be asked: everything it needs is read from its file, and nothing is imported that it does not need."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from headstart.artifacts import ModelInfo, find_model, load_tensors
from headstart.data.decode import UnreadableImage
from headstart.errors import InputError
from headstart.gradcam import heat
from headstart.inference import form_of
from headstart.inputs import One, each, rgb_image
from headstart.preprocess import Preprocess
from headstart.runtime import best_device, choose_precision

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


@dataclass(frozen=True)
class Outputs:
    """features: (n, 512) float32, the pooled features; logits: (n, C) float32; maps: (n, 512, S/32, S/32), which the features are the
    means of, where they were computed."""

    features: np.ndarray
    logits: np.ndarray
    maps: torch.Tensor


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
        batch_size: int = 16,
    ) -> list[Prediction]:
        """One prediction per image, in order. What counts as an image: `headstart.inputs`.

        An image that cannot be decoded gives a prediction with `error`. Raises InputError for what is no image at all."""
        if top < 1 or batch_size < 1:
            raise InputError(f"top is {top} and batch_size {batch_size}; both must be at least 1")
        waiting = each(images)
        found: list[Prediction] = []
        while batch := list(islice(waiting, batch_size)):
            found += self._predict_batch(batch, top=top, embeddings=embeddings)
        return found

    def view(self, image: One) -> torch.Tensor:
        """uint8 (3, S, S): what the network sees of one image. Raises UnreadableImage with the reason, OSError and InputError."""
        found = list(islice(each(image), 2))
        if len(found) != 1:
            raise InputError("view takes one image, not several in one array; use predict")
        return self.info.preprocess.eval_view(rgb_image(found[0], self.info.preprocess))

    def compute(self, pixels: torch.Tensor) -> Outputs:
        """uint8 (n, 3, S, S) as `view` makes them -> features and logits."""
        maps = self._form.maps(self.info.preprocess.normalize(pixels.to(self.device)))
        features, logits = self._form.head(maps)
        return Outputs(features.cpu().numpy(), logits.cpu().numpy(), maps)

    def attention(self, outputs: Outputs) -> np.ndarray:
        """float32 (n, S/32, S/32) in [0, 1]: where each image speaks for its most probable class (Grad-CAM)."""
        weights = self._form.weight[torch.from_numpy(outputs.logits.argmax(axis=1)).to(self._form.weight.device)]
        return np.asarray(heat(outputs.maps, weights.float().to(outputs.maps.device)).cpu().numpy())

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(n, C) -> (n, C) float64, each row summing to 1."""
        exact = logits.astype(np.float64)
        powers = np.exp(exact - exact.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def _predict_batch(self, images: Sequence[One], *, top: int, embeddings: bool) -> list[Prediction]:
        pixels, reasons = views_of(images, self.info.preprocess)
        rows = iter(self.describe(self.compute(pixels), top=top, embeddings=embeddings) if len(pixels) else ())
        found = []
        for image, reason in zip(images, reasons, strict=True):
            path = str(image) if isinstance(image, str | Path) else None
            found.append(_unread(path, reason) if reason is not None else replace(next(rows), path=path))
        return found

    def describe(self, outputs: Outputs, *, top: int, embeddings: bool) -> Iterator[Prediction]:
        """One prediction per row, still without a path."""
        probabilities = self.probabilities(outputs.logits)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for row, best in enumerate(order):
            values = probabilities[row].tolist()
            named = tuple((self.classes[code], values[code]) for code in best)
            yield Prediction(
                path=None,
                label=named[0][0],
                probability=named[0][1],
                probabilities=dict(zip(self.classes, values, strict=True)),
                top=named,
                embedding=outputs.features[row].copy() if embeddings else None,
            )


def views_of(images: Sequence[One], spec: Preprocess) -> tuple[torch.Tensor, list[str | None]]:
    """uint8 (m, 3, S, S), channels last, of the images that can be decoded; and for each image why it cannot, or None."""
    side = spec.image_size
    pixels = torch.empty((len(images), side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    reasons: list[str | None] = []
    count = 0
    for image in images:
        try:
            pixels[count] = spec.eval_view(rgb_image(image, spec))
        except (UnreadableImage, OSError) as error:
            reasons.append((error.strerror or str(error)) if isinstance(error, OSError) else str(error))
        else:
            reasons.append(None)
            count += 1
    return pixels[:count], reasons


def _unread(path: str | None, reason: str) -> Prediction:
    return Prediction(path=path, label=None, probability=None, probabilities=None, top=(), error=reason)


def _device(asked: "str | torch.device | None") -> torch.device:
    if asked is None:
        return best_device()
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
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
