"""Where the network looked: Grad-CAM on its last stage, in closed form.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) weighs the maps of a layer by the mean gradient of the answer's logit in each map,
sums them and drops what is negative. After the last stage of a ResNet come only the mean over each map and a linear layer, so that
gradient is the head's weight divided by the size of the map, everywhere: the section 'CAM as a special case' of the paper. So the forward pass is all that
is needed: no hook, no backward pass, and no library, whose smallest version brings OpenCV and scikit-learn along.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from headstart.artifacts import ModelInfo
from headstart.trunk import FrozenTrunk

BATCH = 8
_HUE = (255, 110, 0)  # of the overlay; seen on dark and on light images


def attention(model_file: Path, info: ModelInfo, pixels: torch.Tensor, answers: Sequence[int]) -> np.ndarray:
    """uint8 (n, 3, S, S) and the class whose logit is looked at -> float32 (n, S/32, S/32) in [0, 1], on the CPU.

    A map of zeros says that no place spoke for the answer. bf16 where the run used it, else fp32."""
    tensors = load_file(model_file)
    precision = "bf16" if info.mixed_precision == "bf16" else "no"
    trunk = FrozenTrunk(tensors, precision=precision, device=torch.device("cpu"))
    weights = tensors["fc.weight"].float()
    found = []
    for start in range(0, len(pixels), BATCH):
        maps = trunk.maps(info.preprocess.normalize(pixels[start : start + BATCH]))
        chosen = weights[torch.tensor(answers[start : start + BATCH])]
        found.append(torch.einsum("nk,nkhw->nhw", chosen, maps).relu())
    heat = torch.cat(found).numpy()
    return np.asarray(heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12))


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image in grey with what was looked at in colour; heat: float (h, w) in [0, 1]."""
    grey = image.convert("L").convert("RGB")
    strength = Image.fromarray((heat * 200).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", image.size, _HUE), grey, strength)
