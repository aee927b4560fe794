"""A folder that timm.create_model("local-dir:...") opens, preprocessing included."""

import math
from pathlib import Path
from typing import Any

from headstart.backbones import Backbone
from headstart.data.transforms import Preprocess
from headstart.exporters.original import Original
from headstart.exporters.probabilities import Probabilities, from_image
from headstart.files import write_json
from headstart.model.model_file import save_tensors
from headstart.model.network import Network


def write(original: Original, path: Path) -> None:
    """config.json and model.safetensors, whose tensors have timm's names."""
    backbone, classes = original.backbone, list(original.info.classes)
    config = {
        "architecture": backbone.timm.partition(".")[0],  # without the tag of the pretrained weights
        "num_classes": len(classes),
        "num_features": backbone.features,
        "global_pool": _global_pool(original.network),
        "label_names": classes,
        "pretrained_cfg": {
            "num_classes": len(classes),
            "first_conv": next(iter(original.network.state_dict())).removesuffix(".weight"),
            "classifier": backbone.head,
            "label_names": classes,
            **pretrained_cfg(original.info.preprocess, backbone),
        },
        "headstart": original.description(),
    }
    path.mkdir()
    write_json(path / "config.json", config)
    save_tensors(path / "model.safetensors", original.network.state_dict(), {})


def _global_pool(network: Network) -> str:
    """As timm names it: avg, or token for the class token of a transformer."""
    pool = getattr(network, "global_pool", "avg")
    return str(getattr(pool, "pool_type", pool))


def pretrained_cfg(spec: Preprocess, backbone: Backbone) -> dict[str, Any]:
    return {
        "input_size": [3, spec.image_size, spec.image_size],
        "fixed_input_size": backbone.fixed_size,
        "interpolation": spec.interpolation,
        "crop_pct": crop_pct(spec),
        "crop_mode": spec.crop,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def crop_pct(spec: Preprocess) -> float:
    """The share by which timm divides image_size, rounding down, for the short side before the crop."""
    share = spec.image_size / spec.resize_size
    while math.floor(spec.image_size / share) < spec.resize_size:  # rounding: 37 px may come out as 36.999...
        share = math.nextafter(share, 0.0)
    return share


def open_it(path: Path) -> Probabilities:
    import timm

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    classes = model.pretrained_cfg["label_names"]
    return from_image(classes, lambda image: model(transform(image)[None]).softmax(dim=1)[0])
