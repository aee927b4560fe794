"""Accuracy of a configuration over several seeds: mean, spread, and the interval that the validation images allow.

    python benchmarks/seeds.py --out runs/seeds --seeds 5 -- --config fine_tune --data.root DIR --model.weights bundled

What follows -- goes to `headstart train`. Seed k is run in OUT/seed-k; runs that are finished there are not repeated.
All seeds are measured on the same images, so more seeds do not narrow the interval: it is Wilson's for the mean accuracy
and the number of validation images.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from headstart.stats import wilson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("arguments", nargs="*", help="for headstart train")
    args = parser.parse_args()
    summaries = []
    for seed in range(args.seeds):
        folder = args.out / f"seed-{seed}"
        if not (folder / "summary.json").exists():
            command = [sys.executable, "-m", "headstart", "train", *args.arguments, "--seed", seed, "--out", folder]
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        summaries.append(json.loads((folder / "summary.json").read_text()))
        val = summaries[-1]["val"]
        print(f"seed {seed}: {val['correct']} of {val['n']}, {summaries[-1]['wall_s']:.0f} s", flush=True)
    correct = [summary["val"]["correct"] for summary in summaries]
    count = summaries[0]["val"]["n"]
    low, high = wilson(round(statistics.mean(correct)), count)
    print(
        f"mean {statistics.mean(correct) / count:.1%} over {len(correct)} seeds "
        f"({min(correct) / count:.1%} to {max(correct) / count:.1%}), 95 % interval for {count} images "
        f"[{low:.1%}, {high:.1%}], median {statistics.median(s['wall_s'] for s in summaries):.0f} s"
    )


if __name__ == "__main__":
    main()
