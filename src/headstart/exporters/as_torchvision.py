"""A plain state dict for torchvision's resnet18, as safetensors."""

from pathlib import Path

from safetensors import safe_open

from headstart.exporters.format import Format, answers
from headstart.exporters.original import Answer, Original, said_by
from headstart.model.model_file import save_tensors


def write(original: Original, path: Path) -> None:
    """The tensors of torchvision's resnet18(num_classes=C); class names and preprocessing as JSON in the header."""
    save_tensors(path, original.network.state_dict(), original.metadata())


def open_it(path: Path) -> Answer:
    """torchvision's model and torchvision's transforms."""
    from torchvision import transforms
    from torchvision.models import resnet18

    with safe_open(path, framework="pt") as file:
        classes, spec = said_by(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    model = resnet18(num_classes=len(classes))
    model.load_state_dict(tensors, strict=True)
    model.eval()
    transform = transforms.Compose(
        [
            transforms.Resize(
                spec.resize_size, transforms.InterpolationMode(spec.interpolation), antialias=spec.antialias
            ),
            transforms.CenterCrop(spec.image_size),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )

    return answers(classes, lambda image: model(transform(image)[None]).softmax(dim=1)[0])


FORMAT = Format(
    name="torchvision",
    what="a plain state dict, safetensors",
    suffix=".safetensors",
    modules=("torchvision",),
    extra="",
    tolerance=1e-4,
    write=write,
    open=open_it,
)
