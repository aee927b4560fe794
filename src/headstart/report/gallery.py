"""The images on the page: errors and unconfident predictions with their Grad-CAM, suspected labels, training images.

Grad-CAM comes from model/gradcam.py instead of a library: the smallest one depends on OpenCV and scikit-learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor

from headstart.html import HEAT, jpeg_uri
from headstart.model.model_file import ModelInfo
from headstart.report.image_grid import tiles_of
from headstart.report.original_images import OriginalImages, ReadImage
from headstart.runs.finished_run import EvaluatedImages, FinishedRun

if TYPE_CHECKING:
    import torch

MAX_ERRORS, MAX_UNCONFIDENT = 24, 8
MAX_FINDINGS = 10  # of each kind of the data doctor; doctor.html has all of them, with images
THUMBNAIL_PX = 224
SUSPECT_PX = 144
GRADCAM_BATCH = 8
HEAT_SHARE = 0.55  # of the colour in a Grad-CAM overlay; the rest is the image in grey


@dataclass(frozen=True)
class Card:
    """One validation image. picture: the input of the network; gradcam: the same with Grad-CAM over it. Both are data
    URIs, or None for an image that cannot be read any more."""

    path: str
    label: str
    prediction: str
    confidence: float
    confidence_of_label: float
    picture: str | None
    gradcam: str | None


@dataclass(frozen=True)
class TrainingImage:
    """One of the augmented training images. title: its class, empty if train_batch.png has no titles; picture: data
    URI."""

    title: str
    picture: str


@dataclass(frozen=True)
class Gallery:
    """unread: why images are missing, at most one line; suspects: data URIs by path, of the images whose labels the
    data doctor suspects; map_side: of the Grad-CAM maps, in cells, None if there are none."""

    errors: list[Card]
    unconfident: list[Card]
    num_errors: int
    unread: list[str] = field(default_factory=list)
    train_batch: Sequence[TrainingImage] = ()
    suspects: Mapping[str, str] = field(default_factory=dict)
    map_side: int | None = None

    @property
    def has_images(self) -> bool:
        return any(card.picture for card in (*self.errors, *self.unconfident))


def make_gallery(run: FinishedRun, read: ReadImage) -> Gallery:
    """The images of predictions, suspected labels, and augmented training images of a run."""
    images = OriginalImages(read, run.sha256, run.info.preprocess.decode)
    gallery = _gallery_of_predictions(run, images)
    findings = [] if run.doctor is None else run.doctor["findings"]
    suspected = [one["paths"][0] for one in findings if one["kind"] == "suspected_label"]
    suspects = _inputs(run, images, suspected[:MAX_FINDINGS])
    return replace(
        gallery,
        unread=images.unread(),
        train_batch=_train_batch(run.path / "train_batch.png"),
        suspects={path: jpeg_uri(_thumbnail(pixels, SUSPECT_PX), quality=80) for path, pixels in suspects.items()},
    )


def gallery_of_predictions(predicted: EvaluatedImages, read: ReadImage) -> Gallery:
    """The most confident errors and the least confident correct predictions."""
    return _gallery_of_predictions(predicted, OriginalImages(read, predicted.sha256, predicted.info.preprocess.decode))


def _gallery_of_predictions(run: EvaluatedImages, images: OriginalImages) -> Gallery:
    errors, unconfident = most_confident_errors(run), least_confident_correct(run)
    rows = [*errors, *unconfident]
    inputs = _inputs(run, images, [run.paths[row] for row in rows])
    pictures, map_side = _pictures(run, {row: inputs[run.paths[row]] for row in rows if run.paths[row] in inputs})
    cards = [_card(run, row, *pictures.get(row, (None, None))) for row in rows]
    return Gallery(
        errors=cards[: len(errors)],
        unconfident=cards[len(errors) :],
        num_errors=int((~run.is_correct).sum()),
        unread=images.unread(),
        map_side=map_side,
    )


def most_confident_errors(run: EvaluatedImages) -> list[int]:
    """At most MAX_ERRORS rows that are classified incorrectly, in descending order of confidence."""
    rows = np.flatnonzero(~run.is_correct)
    return [int(row) for row in rows[np.argsort(-run.confidence[rows], kind="stable")][:MAX_ERRORS]]


def least_confident_correct(run: EvaluatedImages) -> list[int]:
    """At most MAX_UNCONFIDENT rows that are classified correctly, in ascending order of confidence."""
    rows = np.flatnonzero(run.is_correct)
    return [int(row) for row in rows[np.argsort(run.confidence[rows], kind="stable")][:MAX_UNCONFIDENT]]


def gradcam(model_file: Path, info: ModelInfo, pixels: "torch.Tensor", predicted: Sequence[int]) -> np.ndarray | None:
    """Grad-CAM of the predicted classes: uint8 (n, 3, S, S) -> float32 (n, h, w) in [0, 1], on the CPU. None for a
    network whose last layer has no maps.

    In bf16 if the run used it, else in fp32."""
    import torch
    from safetensors.torch import load_file

    from headstart.model.backbones import find_backbone
    from headstart.model.forward import FrozenNetwork

    tensors = load_file(model_file)
    precision = "bf16" if info.mixed_precision == "bf16" else "no"
    trunk = FrozenNetwork(tensors, find_backbone(info.backbone), precision=precision, device=torch.device("cpu"))
    found = []
    for start in range(0, len(pixels), GRADCAM_BATCH):
        part = slice(start, start + GRADCAM_BATCH)
        maps = trunk.maps(info.preprocess.normalize(pixels[part]))
        heat = trunk.attention(maps, torch.tensor(predicted[part]))
        if heat is None:
            return None
        found.append(heat)
    return torch.cat(found).numpy()


def _card(run: EvaluatedImages, row: int, picture: str | None, gradcam: str | None) -> Card:
    label, predicted = int(run.labels[row]), int(run.predicted[row])
    return Card(
        path=run.paths[row],
        label=run.classes[label],
        prediction=run.classes[predicted],
        confidence=float(run.probabilities[row, predicted]),
        confidence_of_label=float(run.probabilities[row, label]),
        picture=picture,
        gradcam=gradcam,
    )


def _inputs(run: EvaluatedImages, images: OriginalImages, paths: Sequence[str]) -> dict[str, "torch.Tensor"]:
    """The inputs of the network, uint8 (3, S, S), of the images that can be read."""
    decoded = {path: images.image(path) for path in paths}
    return {path: run.info.preprocess.resize_and_crop(image) for path, image in decoded.items() if image is not None}


def _pictures(
    run: EvaluatedImages, inputs: Mapping[int, "torch.Tensor"]
) -> tuple[dict[int, tuple[str, str | None]], int | None]:
    """By row: the image and its Grad-CAM, if there is one, as data URIs; and the side of the maps, in cells."""
    if not inputs:
        return {}, None
    import torch

    predicted = [int(run.predicted[row]) for row in inputs]
    maps = gradcam(run.model_file, run.info, torch.stack(list(inputs.values())), predicted)
    found = {}
    for number, (row, image) in enumerate(inputs.items()):
        thumbnail = _thumbnail(image)
        overlay = None if maps is None else jpeg_uri(_overlay(thumbnail, maps[number]), quality=80)
        found[row] = jpeg_uri(thumbnail, quality=80), overlay
    return found, None if maps is None else maps.shape[-1]


def _overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image in grey, coloured by heat, float (h, w) in [0, 1]."""
    grey = image.convert("L").convert("RGB")
    strength = Image.fromarray((heat * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    stops = np.array([ImageColor.getrgb(color) for color in HEAT])
    places = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), places, stops[:, channel]) for channel in range(3)], axis=1)
    colours = Image.fromarray(table.round().astype(np.uint8)[np.asarray(strength)])
    return Image.blend(grey, colours, HEAT_SHARE)


def _thumbnail(pixels: "torch.Tensor", px: int = THUMBNAIL_PX) -> Image.Image:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((px, px))
    return image


def _train_batch(path: Path) -> list[TrainingImage]:
    """The images of train_batch.png; nothing if there is no such file."""
    if not path.is_file():
        return []
    return [TrainingImage(title, jpeg_uri(image, quality=80)) for title, image in tiles_of(path)]
