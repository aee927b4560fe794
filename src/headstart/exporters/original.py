"""The finished model that an exported one has to equal, and what every exported file says of itself."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from headstart.data.transforms import Preprocess
from headstart.exporters.run_images import RunImages
from headstart.model.classifier import Classifier
from headstart.model.model_file import ModelInfo, load_tensors

Answer = Callable[[Image.Image], Mapping[str, float]]
"""An exported model in its own runtime: an RGB image of any size -> probability by class name."""


@dataclass(frozen=True, eq=False)  # tensors have no equality
class Original:
    """network: fp32, in eval mode, its head divided by the temperature, so that the softmax of its logits is what `predict`
    answers; temperature: what it was divided by, 1 where the model file holds no calibration; images: those of the run."""

    path: Path
    network: Classifier
    info: ModelInfo
    temperature: float
    images: RunImages

    def says(self) -> dict[str, Any]:
        """What whoever opens the exported model has to know; JSON values."""
        from importlib.metadata import version

        return {
            "classes": list(self.info.classes),
            "preprocess": self.info.preprocess.to_json(),
            "temperature": self.temperature,
            "manifest_sha256": self.info.manifest_sha256,
            "headstart": version("headstart"),
        }

    def metadata(self) -> dict[str, str]:
        """The same for a format whose values are strings: JSON each."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in self.says().items()}


def read_original(path: Path, images: RunImages) -> Original:
    """path: a model file. Raises InputError if it is not one of ours."""
    tensors, info = load_tensors(path)
    temperature = 1.0 if info.calibration is None else info.calibration.temperature
    with torch.device("meta"):
        network = Classifier(len(info.classes))
    head = {name: (tensors[name].double() / temperature).float() for name in ("fc.weight", "fc.bias")}
    network.load_state_dict(tensors | head, strict=True, assign=True)
    return Original(path, network.eval().requires_grad_(False), info, temperature, images)


def said_by(metadata: Mapping[str, str]) -> tuple[list[str], Preprocess]:
    """Class names and preprocessing out of `Original.metadata`."""
    return json.loads(metadata["classes"]), Preprocess.from_json(json.loads(metadata["preprocess"]))
