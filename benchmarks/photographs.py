"""What reducing photographs to `train_short_side` before the random crop changes and saves.

    python benchmarks/photographs.py hymenoptera_data --megapixels 12 --images 244 --epochs 3 --seeds 2

Training images are enlarged by Lanczos and saved as JPEG of quality 92. Two runs for each seed, alternating,
cut their crops from the whole photographs or from the reduced ones, and are evaluated on the same validation images,
which neither reduces. Seconds per epoch are those of the epochs after the first, which decodes what the memory cannot
keep. The crops themselves differ only by the rounding of their place and by the second resampling, but a place is drawn
in pixels, so two runs see different crops, as two seeds do.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
from jpeg_scale import enlarged

import headstart
from headstart.config import DataConfig
from headstart.data.pixel_cache import cache_limit_for
from headstart.evaluation.statistics import paired
from headstart.predict.image_paths import images

WHOLE = 10**9  # px; no image is as large


def draw(data: Path, folder: Path, megapixels: float, count: int) -> float:
    """train/ with enlarged images, val/ as it is. Returns the megabytes of a decoded photograph."""
    found = [Path(one.path) for one in images([str(data / "train")])]
    for path in found[:: max(1, len(found) // count)][:count]:
        place = folder / "train" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(enlarged(path, megapixels))
    shutil.copytree(data / "val", folder / "val")
    return 3 * megapixels


def seconds_per_epoch(run: Path, epochs: int) -> list[float]:
    """Of the epochs after the first, training steps alone."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["time_s"] for line in lines if "lr" in line]
    each = len(steps) // epochs
    return [sum(steps[start : start + each]) for start in range(each, len(steps), each)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--images", type=int, default=244)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--image_size", type=int, default=224)
    args = parser.parse_args()
    correct: dict[str, list[bool]] = {"whole": [], "reduced": []}
    chances: dict[str, list[np.ndarray]] = {"whole": [], "reduced": []}
    seconds: dict[str, list[float]] = {"whole": [], "reduced": []}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        megabytes = draw(args.data, folder / "data", args.megapixels, args.images)
        kept = cache_limit_for(DataConfig()).num_bytes / 1e6
        for seed in range(args.seeds):
            for name in ("whole", "reduced") if seed % 2 == 0 else ("reduced", "whole"):
                recipe = {"config": "fine_tune", "out": folder / f"{name}_{seed}", "progress": "silent"}
                keys = {"train.epochs": args.epochs, "seed": seed, "data.image_size": args.image_size}
                side = patch("headstart.data.transforms.train_short_side", lambda data, spec: WHOLE)
                if name == "reduced":
                    run = headstart.train(folder / "data", **recipe, **keys, **{"model.weights": "bundled"})
                else:
                    with side:
                        run = headstart.train(folder / "data", **recipe, **keys, **{"model.weights": "bundled"})
                table = pq.read_table(Path(os.fspath(run)) / "predictions.parquet")
                pairs = [table.column(column).to_pylist() for column in ("label", "predicted")]
                correct[name] += [label == predicted for label, predicted in zip(*pairs, strict=True)]
                chances[name].append(np.array(table.column("probabilities").to_pylist()))
                seconds[name] += seconds_per_epoch(Path(os.fspath(run)), args.epochs)
    side = round(2 * args.image_size / 0.875)
    found = paired(correct["whole"], correct["reduced"])
    between = [np.abs(a - b).mean() for a, b in zip(chances["whole"], chances["reduced"], strict=True)]
    seeds = [np.abs(a - b).mean() for kind in chances.values() for a, b in pairwise(kind)]
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    by_seed = f", and between two seeds by {np.mean(seeds):.3f}" if seeds else ""
    print(
        f"{args.images} photographs of {args.megapixels:g} megapixels, short side {side} px, {args.epochs} epochs, "
        f"{args.seeds} seeds\n"
        f"kept in memory: {kept / megabytes:.0f} whole, {kept / (3 * side * side * 4 / 3 / 1e6):.0f} reduced\n"
        f"training of an epoch after the first: {middle['whole']:.1f} s whole, {middle['reduced']:.1f} s reduced\n"
        f"accuracy: {np.mean(correct['whole']):.1%} whole, {np.mean(correct['reduced']):.1%} reduced; difference "
        f"{100 * found.difference:+.1f} points ({100 * found.ci95[0]:.1f} to {100 * found.ci95[1]:.1f}), "
        f"p = {found.p_value:.2g}, n = {len(correct['whole'])}\n"
        f"probabilities differ by {np.mean(between):.3f} on average{by_seed}"
    )


if __name__ == "__main__":
    main()
