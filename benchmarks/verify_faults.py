"""What headstart verify says of a finished run when preprocessing, or the order of the classes, is not what it was.

    python benchmarks/verify_faults.py --run runs/first

Each row breaks one thing in this process alone, verifies, and mends it again.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from headstart.data.transforms import Preprocess
from headstart.diagnostics.verify import verify
from headstart.model.find_model import find_model
from headstart.model.model_file import load_tensors, save_model_tensors
from headstart.results import Verification


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    run = parser.parse_args().run
    resize, crop, transform, normalize = (
        Image.Image.resize,
        Image.Image.crop,
        Preprocess.resize_and_crop,
        Preprocess.normalize,
    )
    sampling = Image.Resampling
    faults: dict[str, contextlib.AbstractContextManager[None]] = {
        "none": contextlib.nullcontext(),
        "bicubic instead of bilinear": replaced(
            Image.Image, "resize", lambda self, size, *_: resize(self, size, sampling.BICUBIC)
        ),
        "nearest instead of bilinear": replaced(
            Image.Image, "resize", lambda self, size, *_: resize(self, size, sampling.NEAREST)
        ),
        "crop one pixel to the right": replaced(
            Image.Image, "crop", lambda self, b: crop(self, (b[0] + 1, b[1], b[2] + 1, b[3]))
        ),
        "BGR instead of RGB": replaced(
            Preprocess, "resize_and_crop", lambda self, image: transform(self, image).flip(0)
        ),
        "not normalised": replaced(Preprocess, "normalize", lambda self, pixels: pixels.float().div(255)),
        "divided by 256": replaced(Preprocess, "normalize", lambda self, pixels: normalize(self, pixels) * (255 / 256)),
    }
    tensors, info = load_tensors(find_model(run))
    with tempfile.TemporaryDirectory() as name:
        for fault, broken in faults.items():
            with broken:
                tell(fault, verify(run))
        other = info.classes[::-1] if len(info.classes) == 2 else (*info.classes[1:], info.classes[0])
        save_model_tensors(Path(name) / "model.safetensors", tensors, replace(info, classes=other))
        tell("classes in another order", verify(name))


def tell(fault: str, found: Verification) -> None:
    row = []
    for precision, checks in found.checks.items():
        worst = max(checks, key=lambda check: check.difference)
        failed = sum(not check.passed for check in checks)
        row.append(
            f"{precision}: {failed} of {len(checks)} fail, pixels differ in {sum(not c.transform for c in checks)}, "
            f"largest difference {worst.difference:.2g} (tolerance {worst.tolerance:.2g})"
        )
    print(f"{fault:28} {'pass' if found.passed else 'FAIL'}  {'; '.join(row)}", flush=True)


if __name__ == "__main__":
    main()
