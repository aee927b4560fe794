"""Training images per second of two processes with one thread each, beside one process with two threads; in turn.

    python benchmarks/two_processes.py --data hymenoptera_data --rounds 3

On two cores. The figures are those of summary.json: training steps alone, without start-up and measuring.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def rate(data: Path, out: Path, *, processes: int, epochs: int) -> float:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    options = {
        "config": "fine_tune",
        "data.root": data,
        "model.weights": "bundled",
        "strategy.batchnorm": "freeze",
        "train.epochs": epochs,
        "data.on_bad_file": "skip",
        "out": out,
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(
        [sys.executable, *launcher, "-m", "headstart", "train", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, "ACCELERATE_USE_CPU": "true"},
    )
    return float(json.loads((out / "summary.json").read_text())["train_images_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    ratios = []
    for number in range(1, args.rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            one = rate(args.data, Path(name) / "one", processes=1, epochs=args.epochs)
            two = rate(args.data, Path(name) / "two", processes=2, epochs=args.epochs)
        ratios.append(two / one)
        print(f"round {number}: one process {one:.1f} img/s, two {two:.1f} img/s, ratio {two / one:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
