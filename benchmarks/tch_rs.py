"""The tch-rs tutorial's frozen head on all images of ants and bees, and on the landscape ones that it kept.

    python benchmarks/tch_rs.py --data hymenoptera_data --weights bundled

The tutorial leaves out images that are higher than wide: it trains on 211 and measures on 127, and reports 94.5 % with
ImageNet weights. Our rule finds 210 and 127. Each line is one run of configs/tch_rs_frozen_head.yaml or
frozen_head.yaml with its Wilson interval.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from headstart.evaluation.statistics import wilson


def is_landscape(path: Path) -> bool:
    """At least as wide as high once the short side is 224 px, whole pixels."""
    with Image.open(path) as image:
        return image.width >= image.height or 224 * image.height // image.width == 224


def landscape_folder(data: Path, target: Path) -> Path:
    """Links to the images that are at least as wide as high."""
    for path in sorted(data.glob("*/*/*")):
        if path.suffix.lower() == ".jpg" and is_landscape(path):
            link = target / path.relative_to(data)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
    return target


def run(data: Path, out: Path, config: str, weights: str) -> list[tuple[str, bool]]:
    """(path, right) of each validation image."""
    options = [
        "--config",
        config,
        "--data.root",
        data,
        "--data.resize_size",
        224,
        "--model.weights",
        weights,
        "--out",
        out,
    ]
    subprocess.run(
        [sys.executable, "-m", "headstart", "train", *map(str, options)], check=True, stdout=subprocess.DEVNULL
    )
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    return [(row["path"], row["label"] == row["predicted"]) for row in rows]


def say(what: str, right: list[bool], out: Path) -> None:
    low, high = wilson(sum(right), len(right))
    weights = json.loads((out / "summary.json").read_text())["weights"]
    print(
        f"{what}, weights {weights}: {sum(right)} of {len(right)}, {sum(right) / len(right):.1%} "
        f"[{low:.1%}, {high:.1%}]",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="hymenoptera_data")
    parser.add_argument("--weights", default="bundled", help="as --model.weights of headstart train")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        landscape = landscape_folder(args.data, folder / "landscape")
        for config in ("tch_rs_frozen_head", "frozen_head"):
            out = folder / f"{config}-all"
            rows = run(args.data, out, config, args.weights)
            say(f"{config}, trained on 244, all images", [right for _, right in rows], out)
            kept = [right for path, right in rows if is_landscape(args.data / path)]
            say(f"{config}, trained on 244, landscape images", kept, out)
            out = folder / f"{config}-landscape"
            rows = run(landscape, out, config, args.weights)
            say(f"{config}, trained on the landscape images, as the tutorial", [right for _, right in rows], out)


if __name__ == "__main__":
    main()
