"""Drawn images: small, easy to learn, no two alike."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue_waves", "green_stripes", "red_checks")


def draw(code: int, number: int) -> Image.Image:
    """A 64x48 RGB image of class `code`: own colour, own texture, noise by `number`; no two are alike."""
    rng = np.random.default_rng([code, number])
    y, x = np.mgrid[0:48, 0:64]
    texture = (np.sin((x + y) / 3), np.sign(np.sin(y)), np.sign(np.sin(x / 2) * np.sin(y / 2)))[code % 3]
    pixels = np.full((48, 64, 3), 70.0)
    pixels[..., 2 - code % 3] += 60 + 40 * texture + rng.uniform(-20, 20)
    pixels += rng.normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_folder(root: Path, *, train: int, val: int | None, classes: Sequence[str] = CLASSES) -> Path:
    number = 0
    for split, count in (("train", train), ("val", val)) if val is not None else (("", train),):
        for code, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count or 0):
                number += 1
                suffix, options = ((".jpg", {"quality": 92}), (".png", {}))[k % 2]
                draw(code, number).save(folder / f"{name}_{k:02d}{suffix}", **options)
    return root
