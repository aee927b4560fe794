"""A folder that transformers' AutoModelForImageClassification and pipeline("image-classification") open.

A ResNet becomes transformers' own ResNetForImageClassification, another network timm's in a TimmWrapper. The
preprocessing is timm's, which transformers wraps, too (TimmWrapperImageProcessor): transformers' own image processors
cut the centre out half a pixel away from torchvision's where the margin is odd, a whole one after rounding, for a
quarter of all sizes (docs/how-to/export.md has the difference).
"""

import json
from pathlib import Path

from headstart.exporters import as_timm
from headstart.exporters.as_timm import pretrained_cfg
from headstart.exporters.original import Original
from headstart.exporters.probabilities import Probabilities
from headstart.files import write_json
from headstart.model.header import class_codes
from headstart.model.model_file import save_tensors
from headstart.model.resnet import KINDS, WIDTHS, BasicBlock


def write(original: Original, path: Path) -> None:
    """config.json, preprocessor_config.json and model.safetensors."""
    if original.backbone.name not in KINDS:
        _write_wrapped(original, path)
        return
    block, depths = KINDS[original.backbone.name]
    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "layer_type": "basic" if block is BasicBlock else "bottleneck",
        "num_channels": 3,
        "embedding_size": WIDTHS[0],
        "hidden_sizes": [width * block.expansion for width in WIDTHS],
        "depths": list(depths),
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "problem_type": "single_label_classification",
        **class_codes(original.info.classes),
        "headstart": original.description(),
    }
    processor = {
        "image_processor_type": "TimmWrapperImageProcessor",
        "pretrained_cfg": pretrained_cfg(original.info.preprocess, original.backbone),
    }
    path.mkdir()
    # TimmWrapperImageProcessor reads config.json; programs that look for the usual file find the same there
    write_json(path / "config.json", config | processor)
    write_json(path / "preprocessor_config.json", processor)
    tensors = {transformers_name(name): value for name, value in original.network.state_dict().items()}
    save_tensors(path / "model.safetensors", tensors, {})


def _write_wrapped(original: Original, path: Path) -> None:
    """timm's folder, which transformers recognises by more entries in config.json."""
    as_timm.write(original, path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= {
        "architectures": ["TimmWrapperForImageClassification"],
        "model_type": "timm_wrapper",
        "image_processor_type": "TimmWrapperImageProcessor",
        **class_codes(original.info.classes),
    }
    write_json(path / "config.json", config)


def transformers_name(name: str) -> str:
    """layer2.0.conv1.weight -> resnet.encoder.stages.1.layers.0.layer.0.convolution.weight, and so on."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    match name.split("."):
        case ["fc", leaf]:
            return f"classifier.1.{leaf}"
        case ["conv1" | "bn1" as step, leaf]:
            return f"resnet.embedder.embedder.{kinds[step[:-1]]}.{leaf}"
        case [stage, block, "downsample", "0" | "1" as place, leaf]:
            layer = f"shortcut.{('convolution', 'normalization')[int(place)]}"
        case [stage, block, step, leaf]:
            layer = f"layer.{int(step[-1]) - 1}.{kinds[step[:-1]]}"
        case _:
            raise AssertionError(f"{name} is not of a ResNet")
    return f"resnet.encoder.stages.{int(stage.removeprefix('layer')) - 1}.layers.{block}.{layer}.{leaf}"


def open_it(path: Path) -> Probabilities:
    from transformers import pipeline
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports that TimmWrapperImageProcessor exists once, as it should
    try:
        classify = pipeline("image-classification", model=str(path), device="cpu")
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()

    return lambda image: {row["label"]: row["score"] for row in classify(image, top_k=None)}
