"""Seconds per epoch (training + validation) of headstart and of the plain tutorial loop, interleaved in one run.

    python benchmarks/epoch_time.py --data hymenoptera_data --strategy fine_tune --rounds 5

Both train the same images at 224 px in batches of 32 with their own defaults on all usable cores: the tutorial loop in
fp32 as it stands, headstart with runtime.mixed_precision auto. A round is one process of each, with three epochs;
start-up is left out. An epoch of headstart is 7 or 8 full batches of 32 here, so a round counts the mean of its epochs;
medians and the ratio over rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BUNDLED = HERE.parent / "src/headstart/assets/resnet18-distilled.safetensors"
EPOCHS = 3


def tutorial(data: Path, strategy: str, folder: Path) -> list[float]:
    out = folder / "tutorial.jsonl"
    command = [HERE / "tutorial_loop.py", "--strategy", strategy, "--data", data, "--weights", BUNDLED]
    _python(*command, "--batch_size", 32, "--epochs", EPOCHS, "--json", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [row["train_s"] + row["val_s"] for row in rows if "epoch" in row]


def headstart(data: Path, strategy: str, folder: Path) -> list[float]:
    command = ["-m", "headstart", "train", "--config", strategy, "--data.root", data, "--model.weights", "bundled"]
    _python(*command, "--train.epochs", EPOCHS, "--train.batch_size", 32, "--out", folder / "run")
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["time_s"] for row in rows if "epoch" in row]


def _python(*arguments: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder with train/ and val/")
    parser.add_argument("--strategy", choices=["fine_tune", "frozen_head"], default="fine_tune")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    theirs: list[float] = []
    ours: list[float] = []
    ratios = []
    for number in range(1, args.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            a = tutorial(args.data, args.strategy, Path(folder))
            b = headstart(args.data, args.strategy, Path(folder))
        theirs.append(statistics.mean(a))
        ours.append(statistics.mean(b))
        ratios.append(theirs[-1] / ours[-1])
        print(f"round {number}: tutorial {theirs[-1]:.2f} s, headstart {ours[-1]:.2f} s", flush=True)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(
        f"{args.strategy}, {EPOCHS * len(ours)} epochs each, medians: tutorial {statistics.median(theirs):.2f} s, "
        f"headstart {statistics.median(ours):.2f} s, ratio {middle:.2f} ({low:.2f} to {high:.2f})"
    )


if __name__ == "__main__":
    main()
