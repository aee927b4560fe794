"""What data.jpeg scaled changes and saves: photographs enlarged to many megapixels, decoded whole and at reduced size.

    python benchmarks/jpeg_scale.py RUN --data hymenoptera_data --megapixels 12 --images 60

RUN is a finished run; its model is given the evaluation views of both. Enlarged by Lanczos, saved as JPEG of quality
92.
"""

import argparse
import dataclasses
import io
import statistics
import time
from pathlib import Path

import torch
from PIL import Image

from headstart.backbones import RESNET18
from headstart.config import DataConfig
from headstart.data.transforms import Preprocess
from headstart.model.find_model import find_model
from headstart.model.model_file import load_model
from headstart.predict.image_paths import images


def enlarged(path: Path, megapixels: float) -> bytes:
    image = Image.open(path).convert("RGB")
    factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    file = io.BytesIO()
    size = round(image.width * factor), round(image.height * factor)
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=92)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or model.safetensors")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--images", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, info = load_model(find_model(args.run))
    exact = info.preprocess
    scaled = dataclasses.replace(exact, jpeg_min_side=Preprocess.of(DataConfig(jpeg="scaled"), RESNET18).jpeg_min_side)
    paths = [Path(image.path) for image in images([str(args.data / "val")])]
    paths = paths[:: max(1, len(paths) // args.images)][: args.images]
    seconds: dict[str, list[float]] = {"exact": [], "scaled": []}
    pixels: list[torch.Tensor] = []
    chances: list[torch.Tensor] = []
    for path in paths:
        photo = enlarged(path, args.megapixels)
        transforms = []
        for name, spec in (("exact", exact), ("scaled", scaled)):
            started = time.perf_counter()
            image = spec.decode(photo)
            seconds[name].append(time.perf_counter() - started)
            transforms.append(spec.resize_and_crop(image))
        pixels.append((transforms[0].int() - transforms[1].int()).abs())
        with torch.inference_mode():
            chances.append(model(exact.normalize(torch.stack(transforms))).double().softmax(dim=1))
    differences, found = torch.stack(pixels).float(), torch.stack(chances)
    middle = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    print(
        f"{len(paths)} photographs of {args.megapixels:g} megapixels: decoded in {middle['exact']:.0f} ms, scaled in "
        f"{middle['scaled']:.0f} ms (medians, one thread), {middle['exact'] / middle['scaled']:.1f} times as fast; "
        f"views differ by {differences.mean():.2f} of 255 on average, {differences.max():.0f} at most; probabilities "
        f"by {(found[:, 0] - found[:, 1]).abs().mean():.4f} on average, {(found[:, 0] - found[:, 1]).abs().max():.4f} "
        f"at most; the same class for {int((found[:, 0].argmax(1) == found[:, 1].argmax(1)).sum())} of {len(paths)}"
    )


if __name__ == "__main__":
    main()
