"""Seconds from the start of the process until the tutorial's best accuracy is reached, and the accuracy at the end.

    python benchmarks/time_to_accuracy.py --data hymenoptera_data --seeds 5 --epochs 25

For each seed: the plain tutorial loop (fine-tuning), and headstart with the recipes fine_tune and probe_then_tune. A recipe
reaches an accuracy when it prints an epoch (or the probe) with at least as many right. The feature bank starts empty.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headstart.stats import wilson

HERE = Path(__file__).parent
BUNDLED = HERE.parent / "src/headstart/assets/resnet18-distilled.safetensors"
RECIPES = ("fine_tune", "probe_then_tune")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def tutorial(data: Path, folder: Path, *, seed: int, epochs: int) -> list[tuple[float, int, int]]:
    """(seconds since the start of the process, right, n) after each epoch."""
    log = folder / f"tutorial-{seed}.jsonl"
    arguments = [HERE / "tutorial_loop.py", "--data", data, "--weights", BUNDLED, "--epochs", epochs, "--seed", seed]
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments), "--json", str(log)], check=True, env=ENVIRONMENT)
    whole_s = time.perf_counter() - started
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    epochs_of = [row for row in rows if "epoch" in row]
    elapsed = whole_s - sum(row["train_s"] + row["val_s"] for row in epochs_of)  # imports and set-up
    points = []
    for row in epochs_of:
        elapsed += row["train_s"] + row["val_s"]
        points.append((elapsed, row["val_correct"], row["val_n"]))
    return points


def headstart(data: Path, folder: Path, recipe: str, *, seed: int) -> list[tuple[float, int, int]]:
    out = folder / f"{recipe}-{seed}"
    options = ["--config", recipe, "--data.root", data, "--model.weights", "bundled", "--seed", seed, "--out", out,
               "--runtime.bank", folder / f"bank-{seed}"]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "headstart", "train", *map(str, options)],
        stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None
    points = []
    for line in process.stdout:
        if (line.startswith(("epoch", "probe "))) and (match := re.search(r"\((\d+) of (\d+)\)", line)):
            points.append((time.perf_counter() - started, int(match[1]), int(match[2])))
    assert process.wait() == 0
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder with train/ and val/")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=25, help="of the tutorial loop")
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as name:
            theirs = tutorial(args.data, Path(name), seed=seed, epochs=args.epochs)
            best = max(right for _, right, _ in theirs)
            reached_s = next(seconds for seconds, right, _ in theirs if right >= best)
            print(
                f"seed {seed}: tutorial {_share(best, theirs[0][2])} at {reached_s:.0f} s of {theirs[-1][0]:.0f} s",
                flush=True,
            )
            for recipe in RECIPES:
                ours = headstart(args.data, Path(name), recipe, seed=seed)
                at = next((seconds for seconds, right, _ in ours if right >= best), None)
                top = max(right for _, right, _ in ours)
                said = "not reached" if at is None else f"reached at {at:.1f} s, {reached_s / at:.1f} times sooner"
                if at is not None:
                    ratios[recipe].append(reached_s / at)
                print(
                    f"  {recipe}: {_share(top, ours[0][2])} in {ours[-1][0]:.0f} s; tutorial's best {said}", flush=True
                )
    for recipe, found in ratios.items():
        middle = f"median {statistics.median(found):.1f} times sooner" if found else "never reached"
        print(f"{recipe}: the tutorial's best was reached in {len(found)} of {args.seeds} runs, {middle}")


def _share(right: int, count: int) -> str:
    low, high = wilson(right, count)
    return f"{right} of {count}, {right / count:.1%} [{low:.1%}, {high:.1%}]"


if __name__ == "__main__":
    main()
