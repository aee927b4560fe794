"""Where the network looked at the images of the page, and the picture of it.

Grad-CAM comes from model/gradcam.py and from no library: the smallest one brings OpenCV and scikit-learn along.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from headstart.model.frozen_trunk import FrozenTrunk
from headstart.model.gradcam import heat
from headstart.model.model_file import ModelInfo

BATCH = 8
_HUE = (255, 110, 0)  # of the overlay; seen on dark and on light images


def attention(model_file: Path, info: ModelInfo, pixels: torch.Tensor, answers: Sequence[int]) -> np.ndarray:
    """uint8 (n, 3, S, S) and the class whose logit is looked at -> float32 (n, S/32, S/32) in [0, 1], on the CPU.

    bf16 where the run used it, else fp32."""
    tensors = load_file(model_file)
    precision = "bf16" if info.mixed_precision == "bf16" else "no"
    trunk = FrozenTrunk(tensors, precision=precision, device=torch.device("cpu"))
    weights = tensors["fc.weight"].float()
    found = []
    for start in range(0, len(pixels), BATCH):
        maps = trunk.maps(info.preprocess.normalize(pixels[start : start + BATCH]))
        chosen = weights[torch.tensor(answers[start : start + BATCH])]
        found.append(heat(maps, chosen))
    return torch.cat(found).numpy()


def overlay(image: Image.Image, looked: np.ndarray) -> Image.Image:
    """The image in grey with what was looked at in colour; looked: float (h, w) in [0, 1]."""
    grey = image.convert("L").convert("RGB")
    strength = Image.fromarray((looked * 200).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", image.size, _HUE), grey, strength)
