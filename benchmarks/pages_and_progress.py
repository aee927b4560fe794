"""What the pages of a run and the progress of training cost: benchmarks/pages_and_progress.py RUN [RUN ...]

For each finished run: seconds to write report.html and README.md beside the seconds of the run, median of --rounds, the
parts in turn; their size. Then microseconds per optimizer step of showing progress, spoken and not, interleaved."""

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from headstart.cli.main import prepare_environment

prepare_environment()

from headstart.config import DataConfig  # noqa: E402
from headstart.data.sources.open import open_source  # noqa: E402
from headstart.report.gallery import make_gallery  # noqa: E402
from headstart.report.pages import render_model_card, render_report  # noqa: E402
from headstart.runs.finished_run import read_run  # noqa: E402
from headstart.runs.progress import TrainingProgress  # noqa: E402

STEPS = 20_000


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def step_us(*, enabled: bool) -> float:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        style = "terminal" if enabled else "silent"
        progress = TrainingProgress(ends=[STEPS], start_step=0, batch_size=32, style=style)
        with progress:
            return (
                1e6 / STEPS * seconds(lambda: [(progress.add(8.0, 6, 8), progress.step_done()) for _ in range(STEPS)])
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for path in args.runs:
        spent: dict[str, list[float]] = {"files": [], "images and Grad-CAM": [], "page": [], "card": []}
        for _ in range(args.rounds):
            run = read_run(path)
            spent["files"].append(seconds(lambda path=path: read_run(path)))
            read = open_source(DataConfig(**run.config["data"])).read
            gallery = make_gallery(run, read)
            spent["images and Grad-CAM"].append(seconds(lambda run=run, read=read: make_gallery(run, read)))
            page = render_report(run, gallery)
            spent["page"].append(seconds(lambda run=run, gallery=gallery: render_report(run, gallery)))
            spent["card"].append(seconds(lambda run=run: render_model_card(run)))
        parts = {name: median(values) for name, values in spent.items()}
        total, wall_s = sum(parts.values()), run.summary.wall_s
        size = len(page) / 2**20
        print(f"{path}: {total:.2f} s, {total / wall_s:.1%} of the {wall_s:.1f} s of the run; {size:.2f} MiB")
        print("  " + ", ".join(f"{name} {value:.2f} s" for name, value in parts.items()))
    silent, spoken = zip(*[(step_us(enabled=False), step_us(enabled=True)) for _ in range(args.rounds)], strict=True)
    print(f"progress: {median(spoken):.1f} us a step, {median(silent):.1f} us in a process that does not speak")


if __name__ == "__main__":
    main()
