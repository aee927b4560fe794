"""What the commands print of the results that the public functions return."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.output import clickable
from headstart.cli.tables import plain_console, print_table
from headstart.wording import plural, shown

if TYPE_CHECKING:
    from headstart.diagnostics.parity import Check
    from headstart.results import Choice, Comparison, DataReport, Evaluation, Export, Verification


def print_evaluation(found: "Evaluation") -> None:
    """The metrics with their intervals, and a table of the classes; in the main process of several."""
    from accelerate import PartialState

    from headstart.data.source import Skipped, summarize
    from headstart.wording import headline

    if not PartialState().is_main_process:
        return
    if found.skipped:
        print(f"skipped {len(found.skipped)}: {summarize([Skipped(*file) for file in found.skipped])}")
    calibration = calibration_in_words(found.ece, by_chance=found.ece_by_chance95)
    lines = (
        headline(found.to_dict()),
        f"loss {found.loss:.4f}, balanced accuracy {found.balanced_accuracy:.4f}, macro F1 {found.macro_f1:.4f}",
        f"Brier score {found.brier:.4f}, {calibration}",
    )
    print("\n".join(lines))
    _print_classes({name: asdict(row) for name, row in found.per_class.items()})


def calibration_in_words(error: float, *, by_chance: float) -> str:
    """error: expected calibration error; by_chance: its 95% limit if there were none."""
    found = "no calibration error detected" if error < 0.0005 else f"calibration error {error:.1%}"
    return f"{found} (up to {by_chance:.1%} would be chance)"


def _print_classes(per_class: Mapping[str, Mapping[str, Any]]) -> None:
    rows = []
    for name, row in per_class.items():
        shares = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall"))
        low_high = "-" if row["recall_ci95"] is None else "{:.3f} to {:.3f}".format(*row["recall_ci95"])
        rows.append((shown(name), str(row["n"]), *shares, low_high))
    print_table(("class", "n", "precision", "recall", "95% interval"), rows)


def print_parity(checks: "Sequence[Check]") -> None:
    rows = []
    for check in checks:
        tolerance = "none promised" if check.tolerance is None else f"{check.tolerance:.0e}"
        rows.append(
            (
                check.name,
                f"{check.difference:.1e}",
                "same bits" if check.tolerance == 0 else tolerance,
                "equal" if check.counts_equal else "differ",
                "same bits" if check.bits_equal else "differ",
                "pass" if check.passed else "FAIL",
            )
        )
    names = ("largest loss difference", "tolerance", "counts", "weights", "verdict")
    print_table(("compared with 1 process, fp32, 0 workers", *names), rows)


def print_comparison(found: "Comparison", *, out: str | None) -> None:
    from headstart.html import interval

    console = plain_console()
    rows = [
        (
            shown(run.path),
            run.strategy,
            run.backbone,
            f"{run.accuracy:.1%}",
            interval(run.accuracy_ci95),
            f"{run.correct} of {run.n}",
            f"{run.loss:.4f}",
        )
        for run in found.runs
    ]
    print_table(("run", "strategy", "backbone", "accuracy", "95% interval", "correct", "loss"), rows)
    for comparison in found.comparisons:
        console.print(comparison.in_words(), soft_wrap=True)
        console.print(f"  loss {comparison.loss_in_words()}", soft_wrap=True)
    for note in found.notes:
        console.print(note, soft_wrap=True)
    if out is not None:
        console.print(f"{out}: the images with different predictions", soft_wrap=True)


def print_choice(found: "Choice", *, out: str | None) -> None:
    """A table of the candidates, comparisons, the expected accuracy, the notes and the command to train."""
    console = plain_console()
    console.print(
        f"{found.repeats} x {found.folds}-fold cross-validation over {found.n:,} training images, "
        f"{len(found.classes)} classes; {found.machine}",
        soft_wrap=True,
    )
    rows = []
    for candidate in found.candidates:
        verdict = found.verdict(candidate)
        usual = candidate.weights in ("imagenet", "hub")
        rows.append(
            (
                candidate.name if usual else f"{candidate.name}, {candidate.weights}",
                f"{candidate.accuracy:.1%}",
                f"{candidate.loss:.4f}",
                f"{candidate.predict_images_per_s:,.0f}",
                f"{candidate.train_images_per_s:,.1f}",
                "" if verdict == "chosen" else verdict,
            )
        )
    numbers = ("accuracy", "loss", "predict\nimg/s", "train\nimg/s")
    print_table(("backbone", *numbers, "chosen is"), rows, right=numbers)
    for comparison in found.comparisons:
        console.print(comparison.in_words(), soft_wrap=True)
    console.print(found.in_words(), soft_wrap=True)
    for note in found.notes:
        console.print(note, soft_wrap=True)
    if out is not None:
        console.print(f"{out}: choose.json, choose.html", soft_wrap=True)
    console.print(f"\nTo train it:\n{found.command}", soft_wrap=True)


def print_export(found: "Export") -> None:
    parity, precision = found.parity, found.record["measured_in"]
    drawn, seen = parity.drawn, parity.validation
    visible = ", ".join(f"{name} {difference:.1e}" for name, difference in parity.visible.items())
    lines = [
        f"{found.path}: {found.description}",
        f"{plural(drawn.n, 'drawn image')} of odd sizes and modes: probabilities differ by {drawn.largest:.1e} at most "
        f"({drawn.at}), {drawn.mean:.1e} on average; allowed {parity.tolerance:g}"
        f"{' on average' if found.format == 'int8' else ''}",
        f"for scale, what a fault in the preprocessing would have changed: {visible}",
    ]
    if parity.blind_to:
        lines.append(f"note: this model is not sensitive enough to show {', '.join(parity.blind_to)}")
    if seen is None:
        lines.append(f"validation images not compared: {parity.not_validated}")
    else:
        lines.append(
            f"{plural(seen.n, 'validation image')}: {parity.correct} correct, {parity.correct_before} before; the "
            f"same class for {seen.same_class}; probabilities differ by {seen.largest:.1e} at most, "
            f"{seen.mean:.1e} on average"
        )
    if precision != "no":
        lines.append(f"compared in fp32; the run was evaluated in {precision}, which differs by its rounding")
    if found.temperature != 1.0:
        lines.append(
            f"probabilities are calibrated: logits are divided by {found.temperature:.4g} in the exported head"
        )
    print("\n".join(lines))


def print_verification(found: "Verification") -> None:
    console = plain_console()
    here, then = found.versions, found.written_with
    console.print(f"{found.model} on {found.device}")
    console.print(
        ", ".join(
            f"{name} {here[name]}"
            + ("" if then.get(name) == here[name] else f" (written with {then.get(name, 'unknown')})")
            for name in ("headstart", "torch", "pillow", "numpy", "python")
        )
    )
    rows = [
        (
            precision,
            check.drawing.name,
            f"{check.drawing.width}x{check.drawing.height} {check.drawing.mode} {check.drawing.format}",
            "same" if check.transform else "differ" if check.decoded else "decoded differently",
            f"{check.difference:.2g}",
            f"{check.tolerance:.2g}",
            "pass" if check.passed else "FAIL",
        )
        for precision, checks in found.checks.items()
        for check in checks
    ]
    names = ("precision", "golden input", "image", "pixels", "largest difference", "tolerance", "")
    print_table(names, rows)
    tensors = {None: "not checked, the file has no hash of them", True: "unchanged", False: "FAIL, changed"}
    console.print(f"tensors: {tensors[found.tensors_unchanged]}")
    for precision, checks in found.checks.items():
        worst = max(checks, key=lambda check: check.difference / check.tolerance)
        console.print(
            f"{precision}: {'pass' if all(check.passed for check in checks) else 'FAIL'}, largest difference of a "
            f"logit {worst.difference:.2g} ({worst.drawing.name}), tolerance {worst.tolerance:.2g}"
        )
    if any(check.decoded and not check.transform for check in found.failed):
        console.print("the images are decoded as before, but transformed differently: resize, crop or channels differ")
    elif any(not check.decoded for check in found.failed):
        console.print("the images are decoded differently than when the file was written")
    elif found.failed:
        console.print("the input is the same, but the logits differ: weights, class order or arithmetic differ")


@contextmanager
def file_progress() -> Iterator[Callable[[int], None] | None]:
    """A bar on standard error that counts files; None if it is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    if not sys.stderr.isatty():
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("files", total=None)
        yield lambda done: progress.advance(task, done)


def print_data_report(found: "DataReport", *, out: str | None) -> None:
    from headstart.data_doctor.command import REPORT_FILES, summary_lines
    from headstart.data_doctor.findings import KINDS, number_of
    from headstart.wording import command_line, listed

    print("\n".join(summary_lines(found)))
    if not found.findings:
        print("no problems found")
    else:
        rows = []
        for kind, count in found.counts.items():
            one = next(finding for finding in found.findings if finding.kind == kind)
            example = f"{listed(one.paths, limit=2)}: {shown(one.message)}"
            rows.append((KINDS[kind].title, number_of(kind, count), example))
        print_table(("what", "how many", "for example"), rows)
    if out is not None:
        print(f"report: {clickable(Path(out) / 'doctor.html')}")
        print(f"{out}: {', '.join(REPORT_FILES)}")
        if found.findings and found.is_image_folder:
            apply = command_line("data", "apply", Path(out) / "fixes.csv", "--data", found.root, "--out", "NEW")
            print(
                f"next: choose in doctor.html and download fixes.csv, or edit {Path(out) / 'fixes.csv'}; then {apply}"
            )
