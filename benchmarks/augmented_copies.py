"""The exact probe with augmented copies in the feature bank: K = 0, 4, 16 on image folders with train/ and val/,
several seeds.

    python benchmarks/augmented_copies.py --data hymenoptera_data solar_cells --seeds 3

The seed determines the augmented copies and the folds of the cross-validation. Crops of data.min_crop_scale, mirrored.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--copies", type=int, nargs="+", default=[0, 4, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--min_crop_scale", type=float, default=0.25)
    parser.add_argument("--bank", default=None, help="default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bank = args.bank or str(Path(name) / "bank")
        for data in args.data:
            for copies in args.copies:
                found = []
                for seed in range(args.seeds):
                    out = Path(name) / f"{data.name}-{copies}-{seed}"
                    options = {
                        "data.root": data,
                        "model.weights": "bundled",
                        "probe.augmented_copies": copies,
                        "seed": seed,
                        "data.min_crop_scale": args.min_crop_scale,
                        "runtime.bank": bank,
                        "out": out,
                    }
                    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
                    subprocess.run(
                        [sys.executable, "-m", "headstart", "train", "--config", "frozen_head", *arguments],
                        check=True,
                        stdout=subprocess.DEVNULL,
                    )
                    found.append(json.loads((out / "summary.json").read_text()))
                right = [summary["val"]["correct"] for summary in found]
                losses = [summary["val"]["loss"] for summary in found]
                count = found[0]["val"]["n"]
                seconds = statistics.median(summary["probe"]["fit_s"] for summary in found)
                print(
                    f"{data.name}, K = {copies}: {right} of {count} right, mean {statistics.mean(right) / count:.1%}, "
                    f"log loss {statistics.mean(losses):.4f}, selection and fit {seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
