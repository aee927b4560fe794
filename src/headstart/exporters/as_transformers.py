"""A folder that transformers' AutoModelForImageClassification and pipeline("image-classification") open.

The network is transformers' own ResNetForImageClassification. The preprocessing is that of timm, which transformers wraps
(TimmWrapperImageProcessor): transformers' own image processors cut the centre out half a pixel away from torchvision's where
the margin is odd, a whole one after rounding, for a quarter of all sizes (docs/export.md has the difference that it makes).
"""

import json
from pathlib import Path

from PIL import Image

from headstart.exporters.as_timm import pretrained_cfg
from headstart.exporters.format import Format
from headstart.exporters.original import Answer, Original
from headstart.model.model_file import save_tensors


def write(original: Original, path: Path) -> None:
    """config.json, preprocessor_config.json and model.safetensors."""
    classes = original.info.classes
    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "layer_type": "basic",
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "problem_type": "single_label_classification",
        "id2label": {str(code): name for code, name in enumerate(classes)},
        "label2id": {name: code for code, name in enumerate(classes)},
        "headstart": original.says(),
    }
    processor = {
        "image_processor_type": "TimmWrapperImageProcessor",
        "pretrained_cfg": pretrained_cfg(original.info.preprocess),
    }
    path.mkdir()
    # TimmWrapperImageProcessor reads config.json; programs that look for the usual file find the same there
    for name, values in (("config.json", config | processor), ("preprocessor_config.json", processor)):
        (path / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = {transformers_name(name): value for name, value in original.network.state_dict().items()}
    save_tensors(path / "model.safetensors", tensors, {})


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
            raise AssertionError(f"{name} is not of a resnet18")
    return f"resnet.encoder.stages.{int(stage.removeprefix('layer')) - 1}.layers.{block}.{layer}.{leaf}"


def open_it(path: Path) -> Answer:
    """transformers' pipeline."""
    from transformers import pipeline
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would tell that TimmWrapperImageProcessor exists once, which is as it should be
    try:
        classify = pipeline("image-classification", model=str(path), device="cpu")
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()

    def answer(image: Image.Image) -> dict[str, float]:
        return {row["label"]: row["score"] for row in classify(image, top_k=None)}

    return answer


FORMAT = Format(
    name="transformers",
    what="a folder for AutoModelForImageClassification and pipeline",
    suffix="",
    modules=("transformers", "timm"),
    extra="transformers",
    tolerance=1e-4,
    write=write,
    open=open_it,
)
