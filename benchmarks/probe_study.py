"""Seconds of the studies that `headstart probe` makes, on drawn features: 5 x 5-fold, the learning curve, per class.

python benchmarks/probe_study.py --images 10000 --classes 10
"""

import argparse
import time

import numpy as np

from headstart.features.probe_study import study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=10)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, args.classes, args.images)
    centres = rng.normal(0, 0.15, (args.classes, 512))
    features = np.maximum(rng.normal(size=(args.images, 512)) + centres[labels], -0.5).astype(np.float32)
    started = time.perf_counter()
    found = study(
        features,
        labels,
        [str(i) for i in range(args.images)],
        classes=[str(i) for i in range(args.classes)],
        folds=5,
        repeats=5,
        seed=0,
    )
    low, high = found.ci95
    print(
        f"{args.images} x 512, {args.classes} classes: {time.perf_counter() - started:.1f} s; accuracy "
        f"{found.mean:.1%} [{low:.1%}, {high:.1%}], {len(found.curve)} points of the learning curve"
    )


if __name__ == "__main__":
    main()
