"""`headstart compare`: finished runs on the same validation images."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headstart.errors import InputError
from headstart.files import check_out, write_atomically
from headstart.html import interval
from headstart.report.comparison import (
    Comparison,
    EvaluatedRun,
    compare,
    disagreements,
    on_the_same_images,
    read_evaluated_run,
)


def compare_command(paths: Sequence[str], *, common: bool, out: str | None, as_json: bool) -> dict[str, Any]:
    """Print tables and verdicts, write a page to `out`, and return the content of `--json`. Raises InputError."""
    if len(paths) < 2:
        raise InputError("name at least two run folders; each of the others is compared with the first")
    places = [Path(path).resolve() for path in paths]
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
    found = {
        "runs": [run.result() for run in runs],
        "comparisons": [
            asdict(comparison) | {"in_words": comparison.in_words(), "disagreements": disagreements(runs[0], other)}
            for comparison, other in zip(comparisons, runs[1:], strict=True)
        ],
        "notes": notes,
    }
    if out is not None:
        from headstart.report.comparison_page import render_comparison

        page, unread = render_comparison(runs, comparisons, notes)
        notes += unread
        write_atomically(Path(out), lambda path: path.write_text(page, encoding="utf-8"))
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(runs, comparisons, notes, out=out)
    return found


def _notes(all_runs: Sequence[EvaluatedRun], runs: Sequence[EvaluatedRun]) -> list[str]:
    """What affects the meaning of the numbers. all_runs: before the images were selected."""
    notes = []
    if max(len(run.keys) for run in all_runs) > len(runs[0].keys):
        counts = ", ".join(f"{run.path} {len(run.keys)}" for run in all_runs)
        notes.append(f"Compared on the {len(runs[0].keys)} images that all runs have in common ({counts}).")
    chosen = [run for run in runs if run.num_choices > 1]
    if chosen and len({run.num_choices for run in runs}) > 1:
        names = ", ".join(f"{run.path} (the best of {run.num_choices})" for run in chosen)
        notes.append(f"The epoch of {names} was chosen on these images, so its accuracy is slightly optimistic.")
    if len(runs) > 2:
        notes.append(
            f"The p-values are adjusted for {len(runs) - 1} comparisons (Holm). The intervals are not adjusted."
        )
    return notes


def _print(
    runs: Sequence[EvaluatedRun], comparisons: Sequence[Comparison], notes: Sequence[str], *, out: str | None
) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(width=None if sys.stdout.isatty() else 130, markup=False, emoji=False, highlight=False)
    names = ("95% interval", "correct", "loss")
    table = Table(
        Column("run", overflow="fold"), "strategy", "accuracy", *(Column(name, no_wrap=True) for name in names)
    )
    for run in runs:
        result = run.result()
        table.add_row(
            run.path,
            run.strategy,
            f"{result['accuracy']:.1%}",
            interval(result["accuracy_ci95"]),
            f"{result['correct']} of {result['n']}",
            f"{result['loss']:.4f}",
        )
    console.print(table)
    for comparison in comparisons:
        console.print(comparison.in_words(), soft_wrap=True)
        console.print(f"  loss {comparison.loss_in_words()}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)
    if out is not None:
        console.print(f"{out}: the images with different predictions")
