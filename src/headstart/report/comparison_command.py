"""`headstart compare`: finished runs on the same validation images."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headstart.errors import InputError
from headstart.evaluation.statistics import log_losses, wilson
from headstart.files import check_out, write_atomically
from headstart.report.comparison import Comparison, Measured, compare, disagreements, on_the_same_images, read_measured


def compare_command(paths: Sequence[str], *, common: bool, out: str | None, as_json: bool) -> dict[str, Any]:
    """`headstart compare`: print tables and verdicts, write a page, and return what `--json` prints."""
    if len(paths) < 2:
        raise InputError("name at least two run folders; each of the others is compared with the first")
    places = [Path(path).resolve() for path in paths]
    repeated = [path for number, path in enumerate(paths) if places[number] in places[:number]]
    if repeated:
        raise InputError(f"{repeated[0]} is named twice; a run differs from itself by nothing")
    if out is not None and Path(out).suffix != ".html":
        raise InputError(f"--out {out}: it is an HTML page; name a file that ends in .html")
    check_out(out)
    measured = [read_measured(path) for path in paths]
    runs = on_the_same_images(measured, common=common)
    comparisons = compare(runs)
    notes = notes_of(measured, runs)
    found = {
        "runs": [_facts(run) for run in runs],
        "comparisons": [
            asdict(comparison) | {"in_words": comparison.in_words(), "disagreements": disagreements(runs[0], other)}
            for comparison, other in zip(comparisons, runs[1:], strict=True)
        ],
        "notes": notes,
    }
    if out is not None:
        from headstart.report.comparison_page import compare_page

        page, unread = compare_page(runs, comparisons, notes)
        notes += unread
        write_atomically(Path(out), lambda path: path.write_text(page, encoding="utf-8"))
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(runs, comparisons, notes, out=out)
    return found


def notes_of(measured: Sequence[Measured], runs: Sequence[Measured]) -> list[str]:
    """What a reader should know before believing the numbers."""
    notes = []
    left_out = max(len(run.keys) for run in measured) - len(runs[0].keys)
    if left_out:
        counts = ", ".join(f"{run.path} {len(run.keys)}" for run in measured)
        notes.append(f"Only the {len(runs[0].keys)} images that all runs have in common are compared ({counts}).")
    chosen = [run for run in runs if run.choices > 1]
    if chosen and len({run.choices for run in runs}) > 1:
        names = ", ".join(f"{run.path} (the best of {run.choices})" for run in chosen)
        notes.append(f"These same images chose the epoch of {names}, which flatters it a little.")
    if len(runs) > 2:
        notes.append(
            f"The p-values are adjusted for {len(runs) - 1} comparisons (Holm); the intervals are not, each is of its own comparison."
        )
    return notes


def _facts(run: Measured) -> dict[str, Any]:
    correct = int(run.is_correct.sum())
    return {
        "path": run.path,
        "strategy": run.strategy,
        "n": len(run.keys),
        "correct": correct,
        "accuracy": correct / len(run.keys),
        "accuracy_ci95": list(wilson(correct, len(run.keys))),
        "loss": float(log_losses(run.probabilities, run.labels).mean()),
    }


def _print(
    runs: Sequence[Measured], comparisons: Sequence[Comparison], notes: Sequence[str], *, out: str | None
) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(width=None if sys.stdout.isatty() else 130, markup=False, emoji=False, highlight=False)
    table = Table(
        Column("run", overflow="fold"),
        "strategy",
        "accuracy",
        *(Column(name, no_wrap=True) for name in ("95 % interval", "correct", "loss")),
    )
    for run in runs:
        facts = _facts(run)
        low, high = facts["accuracy_ci95"]
        table.add_row(
            run.path,
            run.strategy,
            f"{100 * facts['accuracy']:.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f} %",
            f"{facts['correct']} of {facts['n']}",
            f"{facts['loss']:.4f}",
        )
    console.print(table)
    for comparison in comparisons:
        console.print(comparison.in_words(), soft_wrap=True)
        console.print(f"  loss {comparison.loss_in_words()}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)
    if out is not None:
        console.print(f"{out}: the images they disagree on")
