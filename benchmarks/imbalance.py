"""What balanced sampling, class weights and logit adjustment buy where a class is rare: mean recall of the classes.

    python benchmarks/imbalance.py --data hymenoptera_data --seeds 3
    python benchmarks/imbalance.py --data hymenoptera_data --seeds 1 --strategy fine_tune -- --data.image_size 128

In training one class keeps a tenth of what the other has, by links, each class in its turn; a seed is another choice of
the images that are kept (and of the order, the views and the folds). All validation images measure. What follows --
goes to `headstart train`. A frozen head is exact but for balanced sampling, which is drawn in minibatches
(`probe.solver sgd`, beside which the minibatches without it are run). The interval is that of the mean over rare
classes and seeds of the balanced accuracy: 2,000 resamples of the validation images, within their classes and the same
for all runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

WAYS = {
    "none": {},
    "class weights": {"optim.class_weights": "balanced"},
    "logit adjustment 1": {"optim.logit_adjustment": 1},
    "none, minibatches": {"probe.solver": "sgd"},
    "balanced sampling, minibatches": {"probe.solver": "sgd", "data.sampling": "balanced"},
}
TUNED = {
    "none": {},
    "class weights": {"optim.class_weights": "balanced"},
    "logit adjustment 1": {"optim.logit_adjustment": 1},
    "balanced sampling": {"data.sampling": "balanced"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder with train/ and val/, two classes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratio", type=int, default=10, help="of the frequent class to the rare one")
    parser.add_argument("--strategy", choices=["frozen_head", "fine_tune"], default="frozen_head")
    parser.add_argument("arguments", nargs="*", help="for headstart train")
    args = parser.parse_args()
    classes = sorted(path.name for path in (args.data / "train").iterdir() if path.is_dir())
    found: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as name:
        for rare in classes:
            for seed in range(args.seeds):
                root = Path(name) / f"{rare}-{seed}"
                counts = skew(args.data.resolve(), root, rare=rare, ratio=args.ratio, seed=seed)
                print(f"{rare} rare, seed {seed}: {counts}", flush=True)
                for way, keys in (WAYS if args.strategy == "frozen_head" else TUNED).items():
                    out = root / f"run-{way.replace(' ', '-')}"
                    options = {
                        "config": args.strategy,
                        "data.root": root / "data",
                        "model.weights": "bundled",
                        "seed": seed,
                        "runtime.bank": Path(name) / "bank",
                        "out": out,
                        **keys,
                    }
                    parts = [part for key, value in options.items() for part in (f"--{key}", str(value))]
                    command = [sys.executable, "-m", "headstart", "train", *parts, *args.arguments]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    found.setdefault(way, []).append(right_by_class(out))
                    val = json.loads((out / "summary.json").read_text())["val"]
                    recalls = ", ".join(f"{label} {row['recall']:.1%}" for label, row in val["per_class"].items())
                    print(f"  {way}: balanced accuracy {val['balanced_accuracy']:.1%} ({recalls})", flush=True)
    baseline = next(iter(found))
    for way, runs in found.items():
        scores = [balanced(run) for run in runs]
        low, high = interval(runs)
        line = (
            f"{way}: mean {statistics.mean(scores):.1%} ({min(scores):.1%} to {max(scores):.1%}), "
            f"95% interval [{low:.1%}, {high:.1%}]"
        )
        if way != baseline:
            low, high = interval(runs, found[baseline])
            gain = statistics.mean(scores) - statistics.mean(balanced(run) for run in found[baseline])
            line += f"; against {baseline} {gain:+.1%} [{low:+.1%}, {high:+.1%}]"
        print(line)


def skew(data: Path, root: Path, *, rare: str, ratio: int, seed: int) -> dict[str, int]:
    """A folder of links: all of `data` except a part of the rare class in training; returns the training images of each
    class."""
    counts = {}
    for split in ("train", "val"):
        for folder in sorted(path for path in (data / split).iterdir() if path.is_dir()):
            files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
            if split == "train" and folder.name == rare:
                others = [p for p in (data / split).iterdir() if p.is_dir() and p.name != rare]
                most = max(
                    sum(f.suffix.lower() in (".jpg", ".jpeg", ".png") for f in other.iterdir()) for other in others
                )
                picked = np.random.default_rng(seed).permutation(len(files))[: max(2, most // ratio)]
                files = [files[index] for index in sorted(picked)]
            target = root / "data" / split / folder.name
            target.mkdir(parents=True)
            for path in files:
                os.symlink(path, target / path.name)
            if split == "train":
                counts[folder.name] = len(files)
    return counts


def right_by_class(run: Path) -> np.ndarray:
    """Two rows per image, in the order of the ids: its class code, and whether it was predicted right."""
    rows = sorted(pq.read_table(run / "predictions.parquet").to_pylist(), key=lambda row: row["id"])
    codes = {label: code for code, label in enumerate(sorted({row["label"] for row in rows}))}
    return np.array([[codes[row["label"]] for row in rows], [row["predicted"] == row["label"] for row in rows]])


def balanced(run: np.ndarray) -> float:
    labels, right = run
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def interval(runs: list[np.ndarray], others: list[np.ndarray] | None = None) -> tuple[float, float]:
    """Of the mean over the runs, less that of the others: percentile bootstrap over the validation images."""
    rng = np.random.default_rng(0)
    labels = runs[0][0]
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    right = np.mean([run[1] for run in runs], axis=0)
    if others is not None:
        right = right - np.mean([run[1] for run in others], axis=0)
    means = [np.mean([right[rng.choice(rows, len(rows))].mean() for rows in members]) for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
