"""How much the head of a classifier changes if crops are cut from reduced photographs instead of whole ones.

    python benchmarks/reduced_crops.py hymenoptera_data --megapixels 12 --every 1

The training images are enlarged by Lanczos. The same COPIES crops of each, at the same place, are cut from the whole
photograph and from the photograph reduced to each of SIDES; 512 px is `train_short_side` of the default configuration.
A head is fitted to the ResNet-18 features (bundled weights) of each kind of crops and predicts the same validation
images.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from headstart.backbones import RESNET18
from headstart.config import DataConfig
from headstart.data.transforms import Preprocess, _as_tensor, _reduced
from headstart.evaluation.statistics import paired
from headstart.features.logistic_regression import fit
from headstart.model.forward import FrozenNetwork
from headstart.model.weights import load_weights
from headstart.predict.image_paths import images

SPEC = Preprocess.of(DataConfig(), RESNET18)
SIDES = {"whole": 10**9, "512 px": 512, "724 px": 724, "1024 px": 1024}
COPIES, L2, BATCH = 4, 1000.0, 32


def crops(pixels: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """uint8 (3, S, S) each: areas of a quarter to all of the image, aspect ratios as in training."""
    draw, found = random.Random(seed), []
    height, width = pixels.shape[1:]
    for _ in range(COPIES):
        area, ratio = draw.uniform(DataConfig().min_crop_scale, 1), 2 ** draw.uniform(-0.4, 0.4)
        h, w = min(1.0, (area * ratio) ** 0.5), min(1.0, (area / ratio) ** 0.5)
        box = (draw.uniform(0, 1 - h) * height, draw.uniform(0, 1 - w) * width, h * height, w * width)
        size = [SPEC.image_size, SPEC.image_size]
        found.append(v2.functional.resized_crop(pixels, *map(round, box), size, antialias=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--every", type=int, default=1, help="use every n-th training image")
    args = parser.parse_args()
    weights = load_weights("bundled", RESNET18)
    network = FrozenNetwork(weights.tensors or {}, RESNET18, precision="no", device=torch.device("cpu"))

    def features(pixels: list[torch.Tensor]) -> np.ndarray:
        batches = [torch.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
        return np.concatenate([network(SPEC.normalize(batch)).numpy() for batch in batches])

    train, val = ([Path(one.path) for one in images([str(args.data / part)])] for part in ("train", "val"))
    train = train[:: args.every]
    found: dict[str, list[np.ndarray]] = {name: [] for name in SIDES}
    for number, path in enumerate(train):
        image = Image.open(path).convert("RGB")
        factor = (args.megapixels * 1e6 / (image.width * image.height)) ** 0.5
        large = image.resize(tuple(round(factor * side) for side in image.size), Image.Resampling.LANCZOS)
        for name, side in SIDES.items():
            pixels = _as_tensor(large) if name == "whole" else _reduced(large, side=side, interpolation="bilinear")
            found[name].append(features(crops(pixels, number)))
    classes = sorted({path.parent.name for path in val})
    truth = np.array([classes.index(path.parent.name) for path in val])
    labels = np.repeat([classes.index(path.parent.name) for path in train], COPIES)
    looked_at = features([SPEC.resize_and_crop(SPEC.decode(path.read_bytes())) for path in val])
    chances = {}
    for name, rows in found.items():
        head = fit(np.concatenate(rows), labels, num_classes=len(classes), l2=L2).head
        logits = head.logits(looked_at)
        chances[name] = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    print(f"{len(train)} photographs of {args.megapixels:g} megapixels, {COPIES} crops of each, {len(val)} val images")
    correct = {name: (chance.argmax(axis=1) == truth).tolist() for name, chance in chances.items()}
    for name, chance in chances.items():
        one, shift = paired(correct["whole"], correct[name]), np.abs(chance - chances["whole"])[:, 0]
        low, high = (100 * bound for bound in one.ci95)
        print(
            f"{name:8} accuracy {np.mean(correct[name]):.1%}, difference {100 * one.difference:+.1f} points ({low:.1f} "
            f"to {high:.1f}); probabilities differ by {shift.mean():.4f} on average, {shift.max():.4f} at most"
        )


if __name__ == "__main__":
    main()
