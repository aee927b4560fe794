"""Whole processes, imports included: a frozen head on the feature bank against the tutorial's frozen loop, in one run.

    python benchmarks/frozen_head_time.py --data hymenoptera_data --rounds 3

A round is the plain tutorial loop (25 epochs, batch 4, fp32, as it stands), then headstart with an empty bank, then
headstart again with the bank that the first run filled. Both start from the bundled weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
BUNDLED = HERE.parent / "src/headstart/assets/resnet18-distilled.safetensors"


def _seconds(*arguments: object) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started


def _headstart(data: Path, folder: Path, out: str) -> tuple[float, dict]:
    seconds = _seconds(
        "-m",
        "headstart",
        "train",
        "--config",
        "frozen_head",
        "--data.root",
        data,
        "--model.weights",
        "bundled",
        "--runtime.bank",
        folder / "bank",
        "--out",
        folder / out,
    )
    return seconds, json.loads((folder / out / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder with train/ and val/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, default=25, help="of the tutorial loop that are run; fewer are scaled to 25"
    )
    args = parser.parse_args()
    ratios: list[tuple[float, float]] = []
    for number in range(1, args.rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            log = folder / "tutorial.jsonl"
            tutorial_s = _seconds(
                HERE / "tutorial_loop.py",
                "--strategy",
                "frozen_head",
                "--data",
                args.data,
                "--weights",
                BUNDLED,
                "--epochs",
                args.epochs,
                "--seed",
                number - 1,
                "--json",
                log,
            )
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            epochs = [row for row in rows if "epoch" in row]
            tutorial_s += (25 / args.epochs - 1) * sum(row["train_s"] + row["val_s"] for row in epochs)
            best, last = max(row["val_correct"] for row in epochs), epochs[-1]["val_correct"]
            first_s, first = _headstart(args.data, folder, "first")
            second_s, second = _headstart(args.data, folder, "second")
        assert first["features"]["computed"] > 0
        assert second["features"]["computed"] == 0
        ratios.append((tutorial_s / first_s, tutorial_s / second_s))
        low, high = first["val"]["accuracy_ci95"]
        print(
            f"round {number}: tutorial {tutorial_s:.1f} s ({args.epochs} of 25 epochs run), best epoch {best} and last "
            f"{last} of {first['val']['n']}; headstart first run {first_s:.2f} s, second {second_s:.2f} s, "
            f"{first['val']['correct']} correct [{low:.1%}, {high:.1%}]; "
            f"ratios {ratios[-1][0]:.1f} and {ratios[-1][1]:.1f}",
            flush=True,
        )
    first_ratio, second_ratio = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"medians of the ratios: first run {first_ratio:.1f}, second run {second_ratio:.1f}")


if __name__ == "__main__":
    main()
