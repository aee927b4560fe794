"""`headstart compare`: finished runs on the same validation images."""

import os
from collections.abc import Sequence
from pathlib import Path

from headstart.errors import InputError
from headstart.files import check_out, write_atomically
from headstart.report.comparison import EvaluatedRun, compare, on_the_same_images, read_evaluated_run
from headstart.results import Comparison
from headstart.wording import plural


def compare_runs(paths: Sequence[str], *, common: bool, out: str | None = None) -> Comparison:
    """Compare each of the other runs with the first one, and write a page to `out`. Raises InputError."""
    if len(paths) < 2:
        raise InputError("name at least two run folders; each of the others is compared with the first")
    places = [os.path.realpath(path) for path in paths]  # Path.resolve raises for a link to itself
    repeated = [path for number, path in enumerate(paths) if places[number] in places[:number]]
    if repeated:
        raise InputError(f"{repeated[0]} is named twice; list each run once")
    if out is not None and Path(out).suffix != ".html":
        raise InputError(f"--out {out}: the output is an HTML page; name a file that ends in .html")
    check_out(out)
    all_runs = [read_evaluated_run(path) for path in paths]
    runs = on_the_same_images(all_runs, common=common)
    comparisons = compare(runs)
    notes = _notes(all_runs, runs)
    if out is not None:
        from headstart.report.comparison_page import render_comparison

        page, unread = render_comparison(runs, comparisons, notes)
        notes += unread
        write_atomically(Path(out), lambda path: path.write_text(page, encoding="utf-8"))
    return Comparison(tuple(run.result() for run in runs), tuple(comparisons), tuple(notes))


def _notes(all_runs: Sequence[EvaluatedRun], runs: Sequence[EvaluatedRun]) -> list[str]:
    """What affects the meaning of the numbers. all_runs: before the images were selected."""
    notes = []
    if max(len(run.keys) for run in all_runs) > len(runs[0].keys):
        counts = ", ".join(f"{run.path} {len(run.keys)}" for run in all_runs)
        notes.append(f"Compared on the {plural(len(runs[0].keys), 'image')} that all runs have in common ({counts}).")
    chosen = [run for run in runs if run.num_choices > 1]
    if chosen and len({run.num_choices for run in runs}) > 1:
        names = ", ".join(f"{run.path} (the best of {run.num_choices})" for run in chosen)
        notes.append(f"The epoch of {names} was chosen on these images, so its accuracy is slightly optimistic.")
    if len(runs) > 2:
        notes.append(
            f"The p-values are adjusted for {len(runs) - 1} comparisons (Holm). The intervals are not adjusted."
        )
    return notes
