"""A folder that timm.create_model("resnet18", pretrained_cfg...) or "local-dir:" opens, preprocessing included."""

import json
import math
from pathlib import Path
from typing import Any

from headstart.data.transforms import Preprocess
from headstart.exporters.format import Format, answers
from headstart.exporters.original import Answer, Original
from headstart.model.frozen_trunk import FEATURES
from headstart.model.model_file import save_tensors


def write(original: Original, path: Path) -> None:
    """config.json and model.safetensors. timm's resnet18 has torchvision's names."""
    classes = list(original.info.classes)
    config = {
        "architecture": "resnet18",
        "num_classes": len(classes),
        "num_features": FEATURES,
        "global_pool": "avg",
        "label_names": classes,
        "pretrained_cfg": {
            "num_classes": len(classes),
            "pool_size": [-(-original.info.preprocess.image_size // 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
            "label_names": classes,
            **pretrained_cfg(original.info.preprocess),
        },
        "headstart": original.says(),
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_tensors(path / "model.safetensors", original.network.state_dict(), {})


def pretrained_cfg(spec: Preprocess) -> dict[str, Any]:
    """The preprocessing as timm names it."""
    return {
        "input_size": [3, spec.image_size, spec.image_size],
        "fixed_input_size": False,
        "interpolation": spec.interpolation,
        "crop_pct": crop_pct(spec),
        "crop_mode": spec.crop,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def crop_pct(spec: Preprocess) -> float:
    """The share by which timm divides image_size, rounding down, to know the short side before the crop."""
    share = spec.image_size / spec.resize_size
    while math.floor(spec.image_size / share) < spec.resize_size:  # rounding: 37 px may come out as 36.999...
        share = math.nextafter(share, 0.0)
    return share


def open_it(path: Path) -> Answer:
    """timm's model and timm's transform for it."""
    import timm

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    classes = model.pretrained_cfg["label_names"]

    return answers(classes, lambda image: model(transform(image)[None]).softmax(dim=1)[0])


FORMAT = Format(
    name="timm",
    what="a folder for timm.create_model",
    suffix="",
    modules=("timm",),
    extra="timm",
    tolerance=1e-4,
    write=write,
    open=open_it,
)
