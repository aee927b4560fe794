"""The finished model that an exported one has to equal, and the description of it in every exported file."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headstart.backbones import Backbone
from headstart.exporters.run_images import RunImages
from headstart.model.backbones import find_backbone
from headstart.model.build import network_of
from headstart.model.model_file import ModelInfo, load_tensors
from headstart.model.network import Network


@dataclass(frozen=True, eq=False)  # tensors have no equality
class Original:
    """network: fp32, in eval mode, its head divided by the temperature, so that the softmax of its logits is what
    `predict` gives; temperature: 1 where the model file holds no calibration; images: those of the run."""

    path: Path
    backbone: Backbone
    network: Network
    info: ModelInfo
    temperature: float
    images: RunImages

    def description(self) -> dict[str, Any]:
        """What whoever opens the exported model has to know; JSON values."""
        return {
            "classes": list(self.info.classes),
            "preprocess": self.info.preprocess.to_json(),
            "temperature": self.temperature,
            "manifest_sha256": self.info.manifest_sha256,
            "backbone": self.backbone.name,
            "headstart": version("headstart"),
        }

    def metadata(self) -> dict[str, str]:
        """The same for a format whose values are strings: JSON each."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in self.description().items()}


def read_original(path: Path, images: RunImages) -> Original:
    """path: a model file. Raises InputError if it is not one of ours."""
    tensors, info = load_tensors(path)
    temperature = 1.0 if info.calibration is None else info.calibration.temperature
    backbone = find_backbone(info.backbone)
    names = (f"{backbone.head}.weight", f"{backbone.head}.bias")
    head = {name: (tensors[name].double() / temperature).float() for name in names}
    network = network_of(tensors | head, backbone).requires_grad_(False)
    return Original(path, backbone, network, info, temperature, images)
