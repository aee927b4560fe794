"""Golden inputs: drawn images whose fingerprints after preprocessing and whose logits lie in every model file.

Whoever opens the file draws them again and compares. They are drawn by integer arithmetic, so none is stored. With 8
bits per channel, at (x, y) of channel c of drawing number s:

    v = 5 x + 3 y + 40 c + 29 s + (x y >> (3 + c)) + 90 ((x >> 3 ^ y >> 3) & 1) + (7 + c) (x + y & 3)        modulo 256

A 16-bit gray value is 256 v + (x + y) % 256 of channel 0, an alpha (x + 2 y) % 256, a colour of the palette v of
(x, y) = (index, 0). All are PNG files, except the last one: JPEG, whose decoders may differ in the last bit.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from headstart.data.transforms import Preprocess
from headstart.model.backbones import find_backbone
from headstart.model.forward import FrozenNetwork
from headstart.results import GoldenCheck, GoldenInput

if TYPE_CHECKING:
    from headstart.model.model_file import ModelInfo

FORMULA = 1  # changes with what is drawn
TOLERANCE = {"no": 1e-3, "tf32": 0.01, "bf16": 0.04, "fp16": 0.01}
"""Largest difference of a logit, as a share of the largest logit of all golden inputs (or of 1, if that is less).
tf32: fp32 on a GPU that multiplies with 10 bits of mantissa, which torch allows in convolutions."""
JPEG_TOLERANCE = 0.05
"""The same for the JPEG file if its decoder gives other pixels."""


DRAWINGS = (
    GoldenInput("landscape", "RGB", 301, 203),
    GoldenInput("upright gray", "L", 97, 131),
    GoldenInput("palette", "P", 180, 241),
    GoldenInput("alpha", "RGBA", 333, 127),
    GoldenInput("16-bit gray", "I;16", 151, 90),
    GoldenInput("turned", "RGB", 260, 181, orientation=6),
    GoldenInput("jpeg", "RGB", 427, 640, format="JPEG"),
)


def draw(number: int) -> bytes:
    """The file of DRAWINGS[number]."""
    drawing = DRAWINGS[number]
    x, y = np.meshgrid(np.arange(drawing.width), np.arange(drawing.height))
    if drawing.mode == "I;16":
        image = Image.fromarray((256 * _values(x, y, 0, number) + (x + y) % 256).astype(np.uint16))
    elif drawing.mode == "L":
        image = Image.fromarray(_values(x, y, 0, number).astype(np.uint8))
    elif drawing.mode == "P":
        image = Image.fromarray(_values(x, y, 0, number).astype(np.uint8), "P")
        index = np.arange(256)
        palette = np.stack([_values(index, 0 * index, c, number) for c in range(3)], axis=1)
        image.putpalette(palette.astype(np.uint8).tobytes())
    else:
        channels = [_values(x, y, c, number) for c in range(3)]
        if drawing.mode == "RGBA":
            channels.append((x + 2 * y) % 256)
        image = Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))
    exif = Image.Exif()
    if drawing.orientation != 1:
        exif[0x0112] = drawing.orientation
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": 90} if drawing.format == "JPEG" else {"compress_level": 1}
    image.save(file, drawing.format, exif=exif, **options)
    return file.getvalue()


def _values(x: np.ndarray, y: np.ndarray, c: int, s: int) -> np.ndarray:
    """int64 of 0 to 255: the formula above."""
    checks = 90 * (((x >> 3) ^ (y >> 3)) & 1)
    return np.asarray((5 * x + 3 * y + 40 * c + 29 * s + ((x * y) >> (3 + c)) + checks + (7 + c) * ((x + y) & 3)) % 256)


def record(info: "ModelInfo", tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """For the model file: fingerprints, and logits in fp32 on the CPU by one thread, so that the same run writes the
    same bytes. tensors: by the names of the backbone."""
    cpu = torch.device("cpu")
    here = {name: value.detach().to(cpu) for name, value in tensors.items()}
    folded = info.measured_on == "feature bank"
    network = FrozenNetwork(
        here, find_backbone(info.backbone), precision="no", device=cpu, folded=folded, channels_last=info.channels_last
    )
    pixels, inputs = _look(info.preprocess)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, logits = network.head(network.maps(info.preprocess.normalize(pixels)))
    finally:
        torch.set_num_threads(threads)
    for entry, row in zip(inputs, logits.tolist(), strict=True):
        entry["logits"] = [round(value, 6) for value in row]
    return {"formula": FORMULA, "classes": list(info.classes), "inputs": inputs}


def compare(
    golden: Mapping[str, Any],
    *,
    classes: Sequence[str],
    spec: Preprocess,
    tolerance: float,
    logits_of: Callable[[torch.Tensor], np.ndarray],
) -> list[GoldenCheck]:
    """The golden inputs of a model file beside those of this machine. tolerance: one of TOLERANCE; logits_of: uint8
    (n, 3, S, S) -> (n, C) in the order of `classes`.

    Classes are compared by name, so that swapped ones are noticed. Raises ValueError for another formula or classes."""
    if golden.get("formula") != FORMULA:
        raise ValueError(f"its golden inputs are of formula {golden.get('formula')}, this version draws {FORMULA}")
    before = list(golden["classes"])
    if sorted(before) != sorted(classes):
        raise ValueError("its golden inputs are of other classes")
    order = [before.index(name) for name in classes]
    expected = np.array([entry["logits"] for entry in golden["inputs"]], dtype=np.float64)[:, order]
    pixels, inputs = _look(spec)
    differences = np.abs(logits_of(pixels).astype(np.float64) - expected).max(axis=1)
    scale = max(1.0, float(np.abs(expected).max()))
    found = []
    for drawing, difference, then, now in zip(DRAWINGS, differences, golden["inputs"], inputs, strict=True):
        decoded = then["rgb_sha256"] == now["rgb_sha256"]
        share = tolerance + (JPEG_TOLERANCE if drawing.format == "JPEG" and not decoded else 0.0)
        same = then["view_sha256"] == now["view_sha256"]
        found.append(GoldenCheck(drawing, float(difference), share * scale, decoded, same))
    return found


def _look(spec: Preprocess) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """What the network sees of all golden inputs, uint8 (n, 3, S, S), and their fingerprints."""
    pixels, inputs = [], []
    for number, drawing in enumerate(DRAWINGS):
        rgb = spec.decode(draw(number))
        image_pixels = spec.resize_and_crop(rgb)
        shape = "x".join(str(side) for side in rgb.size).encode()
        inputs.append(
            {
                "name": drawing.name,
                "rgb_sha256": hashlib.sha256(shape + rgb.tobytes()).hexdigest(),
                "view_sha256": hashlib.sha256(image_pixels.contiguous().numpy().tobytes()).hexdigest(),
            }
        )
        pixels.append(image_pixels)
    return torch.stack(pixels), inputs
