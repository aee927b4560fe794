"""Accuracy over seeds, and seconds until the tutorial's best accuracy is reached, of fine_tune, probe_then_tune and the
tutorial.

python benchmarks/time_to_accuracy.py --out runs/time --seeds 5 -- --data.root hymenoptera_data --model.weights bundled

What follows -- goes to `headstart train`. Seed k of a recipe is run in OUT/RECIPE/seed-k; runs that are finished there
are not repeated, and --only reports what is there. The tutorial is configs/tutorial_fine_tune.yaml in the precision of
the others. Seconds count from the beginning of the run, imports not included, to the end of the epoch (or of the
probe's measurement) that has as many right as the tutorial's best epoch; of a seed that the tutorial was not run with,
its other seeds' medians are the mark.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from headstart.evaluation.statistics import wilson

TUTORIAL = "tutorial_fine_tune"
RECIPES = {
    "fine_tune": ["--config", "fine_tune"],
    "probe_then_tune": ["--config", "probe_then_tune"],
    TUTORIAL: ["--config", TUTORIAL, "--runtime.mixed_precision", "auto"],
}


def points(folder: Path) -> list[tuple[float, int]]:
    """(seconds since the beginning, right) at the end of the probe and of each epoch."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if "epoch" in row]
    wall_s = json.loads((folder / "summary.json").read_text())["wall_s"]
    passed = wall_s - sum(row.get("time_s", 0.0) for row in epochs)
    found = []
    for row in epochs:
        passed += row.get("time_s", 0.0)
        found.append((passed, row["val_correct"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", action="store_true", help="report the runs that are there")
    parser.add_argument("arguments", nargs="*", help="for headstart train")
    args = parser.parse_args()
    runs: dict[str, dict[int, Path]] = {recipe: {} for recipe in RECIPES}
    for seed in range(args.seeds):
        for recipe, options in RECIPES.items():
            folder = args.out / recipe / f"seed-{seed}"
            if not (folder / "summary.json").exists() and not args.only:
                command = [
                    sys.executable,
                    "-m",
                    "headstart",
                    "train",
                    *options,
                    *args.arguments,
                    "--seed",
                    str(seed),
                    "--out",
                    str(folder),
                    "--runtime.bank",
                    str(args.out / "bank" / str(seed)),
                ]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if (folder / "summary.json").exists():
                runs[recipe][seed] = folder
    best = {}
    for seed, folder in runs[TUTORIAL].items():
        right = max(right for _, right in points(folder))
        best[seed] = next(point for point in points(folder) if point[1] == right)
    middle = statistics.median(s for s, _ in best.values()), statistics.median_high([r for _, r in best.values()])
    for recipe, folders in runs.items():
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders.values()]
        correct, count = [summary["val"]["correct"] for summary in summaries], summaries[0]["val"]["n"]
        low, high = wilson(round(statistics.mean(correct)), count)
        line = (
            f"{recipe}: {len(correct)} seeds, right on {', '.join(map(str, correct))} of {count}, mean "
            f"{statistics.mean(correct) / count:.1%} [{low:.1%}, {high:.1%}], "
            f"{statistics.median(s['wall_s'] for s in summaries):.0f} s"
        )
        ratios, reached = [], []
        for seed, folder in folders.items():
            mark_s, mark = best.get(seed, middle)
            seconds = next((seconds for seconds, right in points(folder) if right >= mark), None)
            if seconds is not None:
                reached.append(seconds)
                ratios.append(mark_s / seconds)
        if reached:
            line += (
                f"; the tutorial's best reached by {len(reached)} of {len(folders)}, after "
                f"{statistics.median(reached):.0f} s ({min(reached):.0f} to {max(reached):.0f}), "
                f"{statistics.median(ratios):.1f} times as soon ({min(ratios):.1f} to {max(ratios):.1f})"
            )
        print(line)


if __name__ == "__main__":
    main()
