"""Confident learning on planted wrong labels: a share of the labels is flipped; how many are found?

    python benchmarks/planted_noise.py --data hymenoptera_data solar_cells --seeds 5

Features once, then algebra. All images of train/ and val/ together; near-duplicates share a fold. What the data held of
wrong labels before counts as a false alarm here, so the precision is a lower bound.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from headstart.config import DataConfig, ModelConfig, RunConfig, RuntimeConfig
from headstart.data.sources.folders import ClassFolders
from headstart.data_doctor.check import check_files
from headstart.data_doctor.duplicates import clusters
from headstart.data_doctor.inspection import features_of_images
from headstart.data_doctor.label_noise import study_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--bank", default="", help="default: in the user's cache folder")
    args = parser.parse_args()
    for root in args.data:
        config = RunConfig(
            data=DataConfig(root=str(root)),
            model=ModelConfig(weights=args.weights),
            runtime=RuntimeConfig(bank=args.bank),
        )
        good = check_files(ClassFolders(str(root))).good
        features = features_of_images(config, ClassFolders(str(root)), good)
        shared = clusters([image.sha256 for image in good], np.array([image.hashes for image in good]), features)
        owners = [str(number) for number in shared]
        classes = sorted({image.file.label for image in good})
        truth = np.array([classes.index(image.file.label) for image in good])
        print(f"{root.name}: {len(good)} images in {len(set(owners))} clusters, {len(classes)} classes", flush=True)
        for share in args.shares:
            rows = []
            for seed in range(args.seeds):
                rng = np.random.default_rng(seed)
                flipped = rng.choice(len(truth), round(share * len(truth)), replace=False)
                labels = truth.copy()
                labels[flipped] = (truth[flipped] + rng.integers(1, len(classes), len(flipped))) % len(classes)
                study = study_labels(features, labels, owners, num_classes=len(classes), folds=5, seed=seed)
                suspects = [suspect.index for suspect in study.suspects]
                hits = np.isin(suspects, flipped)
                top = hits[: len(flipped)].sum() / max(len(flipped), 1)
                rows.append(
                    (
                        hits.sum() / max(len(flipped), 1),
                        hits.sum() / max(len(suspects), 1),
                        top,
                        len(suspects),
                        1 - np.trace(study.joint),
                        study.accuracy,
                    )
                )
            columns = [(statistics.mean(column), min(column), max(column)) for column in zip(*rows, strict=True)]
            names = (
                "recall",
                "precision",
                "precision among as many as were flipped",
                "suspects",
                "estimated share",
                "agreement",
            )
            said = [
                f"{name} {mean:.3g} ({low:.3g} to {high:.3g})"
                for name, (mean, low, high) in zip(names, columns, strict=True)
            ]
            print(f"  {share:.0%} flipped: " + ", ".join(said), flush=True)


if __name__ == "__main__":
    main()
