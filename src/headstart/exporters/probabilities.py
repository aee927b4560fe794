"""An exported model as a function from an image to probabilities."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from headstart.data.transforms import Preprocess

Probabilities = Callable[[Image.Image], Mapping[str, float]]
"""An exported model in its own runtime: an RGB image of any size -> probability by class name."""


def from_image(classes: Sequence[str], probabilities: Callable[[Image.Image], Any]) -> Probabilities:
    """probabilities: of an opened model, an RGB image -> (C,) tensor or array, in the order of classes."""

    def by_name(image: Image.Image) -> dict[str, float]:
        with torch.inference_mode():
            return dict(zip(classes, probabilities(image).tolist(), strict=True))

    return by_name


def from_pixels(metadata: Mapping[str, str], logits: Callable[[torch.Tensor], Any]) -> Probabilities:
    """logits: of an opened network, float32 (1, 3, S, S), normalised -> (1, C) tensor or array; metadata: those of
    `Original`, by which images are preprocessed."""
    classes, spec = described_by(metadata)

    def probabilities(image: Image.Image) -> torch.Tensor:
        found = logits(spec.normalize(spec.resize_and_crop(image)[None]))
        return torch.as_tensor(found).double().softmax(dim=1)[0]

    return from_image(classes, probabilities)


def described_by(metadata: Mapping[str, str]) -> tuple[list[str], Preprocess]:
    """Class names and preprocessing out of `Original.metadata`."""
    return json.loads(metadata["classes"]), Preprocess.from_json(json.loads(metadata["preprocess"]))
