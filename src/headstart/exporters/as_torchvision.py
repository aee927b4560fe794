"""A plain state dict for a ResNet of torchvision, as safetensors."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from headstart.exporters.original import Original
from headstart.exporters.probabilities import Probabilities, described_by, from_image
from headstart.model.model_file import save_tensors


def write(original: Original, path: Path) -> None:
    """The tensors of torchvision.models.resnet18(num_classes=C) or a deeper one; class names and preprocessing as
    JSON in the header."""
    save_tensors(path, original.network.state_dict(), original.metadata())


def open_it(path: Path) -> Probabilities:
    from torchvision import transforms
    from torchvision.models import get_model

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    classes, spec = described_by(metadata)
    model = get_model(json.loads(metadata["backbone"]), num_classes=len(classes)).eval()
    model.load_state_dict(load_file(path), strict=True)
    interpolation = transforms.InterpolationMode(spec.interpolation)
    transform = transforms.Compose(
        [
            transforms.Resize(spec.resize_size, interpolation, antialias=spec.antialias),
            transforms.CenterCrop(spec.image_size),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    return from_image(classes, lambda image: model(transform(image)[None]).softmax(dim=1)[0])
