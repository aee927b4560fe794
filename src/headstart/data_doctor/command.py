"""`headstart data check`: run the checks, print a summary, write the report."""

import json
import sys
from collections import Counter
from pathlib import Path

from headstart.config import RunConfig
from headstart.data.sources.folders import ClassFolders
from headstart.data_doctor.findings import KINDS, number_of
from headstart.data_doctor.fixes import write_fixes, write_groups
from headstart.data_doctor.inspection import Report, inspect
from headstart.data_doctor.page import doctor_page
from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.wording import counted, listed, shown

REPORT_FILES = ("doctor.json", "doctor.html", "fixes.csv", "groups.csv")


def check_command(config: RunConfig, *, labels: bool, out: str | None) -> Report:
    """Check config.data.root, print a summary and write the report to the folder `out`. Raises InputError before the
    checks if it cannot be written."""
    if out is not None:
        _check_report_folder(Path(out), Path(config.data.root))
    report = inspect(config, labels=labels)
    _print(report)
    if out is not None:
        write_report(report, Path(out))
        print(f"{out}: {', '.join(REPORT_FILES)}")
        source = report.checked.source
        if report.findings and isinstance(source, ClassFolders):
            print(
                f"next: edit {out}/fixes.csv, then headstart data apply {out}/fixes.csv --data {source.root} --out NEW"
            )
    return report


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    for line in summary_lines(report):
        console.print(line)
    if not report.findings:
        console.print("no problems found")
        return
    table = Table("what", "how many", "for example")
    for kind, count in report.counts().items():
        one = next(finding for finding in report.findings if finding.kind == kind)
        table.add_row(KINDS[kind].title, number_of(kind, count), f"{listed(one.paths, limit=2)}: {shown(one.message)}")
    Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140).print(table)


def summary_lines(report: Report) -> list[str]:
    """A description of the data, with or without faults."""
    checked, census = report.checked, report.checked.census
    labels = {label for _, label in checked.counts}
    lines = [
        f"{shown(checked.source.root)}: {counted(checked.num_files, 'file')}, "
        f"{counted(len(checked.good), 'usable image')}, {counted(len(labels), 'class', 'classes')}"
    ]
    if census.smallest and census.median and census.largest:
        named = (("smallest", census.smallest), ("median", census.median), ("largest", census.largest))
        sizes = ", ".join(f"{name} {width}x{height}" for name, (width, height) in named)
        lines.append(f"formats: {_list(census.formats)}; colour modes: {_list(census.modes)}")
        lines.append(f"sizes, px: {sizes}; rotated by EXIF: {census.rotated}")
    if report.labels is not None:
        lines.append(
            f"labels: a cross-validated linear probe agrees with {100 * report.labels['accuracy']:.1f}% of "
            f"{report.labels['images']}; at most an estimated {100 * report.labels['estimated_wrong']:.1f}% are wrong, "
            "hard images included, which a probe cannot tell from wrong labels"
        )
    return lines + report.notes


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _check_report_folder(out: Path, root: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if any((out / name).exists() for name in REPORT_FILES):
        raise InputError(f"--out {out} already contains a report, perhaps with edited fixes; name another folder")
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"--out {out} lies inside the data; name a place outside {root}")


def write_report(report: Report, out: Path) -> None:
    """REPORT_FILES in `out`, each written atomically."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; name another place") from None
    checked = report.checked
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=True) + "\n"  # escapes: a name may not be valid UTF-8
    page = doctor_page(checked, report.findings, summary_lines(report))
    for name, content in (("doctor.json", text), ("doctor.html", page)):
        write_atomically(out / name, lambda path, content=content: path.write_text(content, encoding="utf-8"))  # type: ignore[misc]
    write_fixes(out / "fixes.csv", report.findings)
    clusters = [(image.file.path, int(report.cluster_of[image.sha256])) for image in checked.good]
    sizes = Counter(cluster for _, cluster in clusters)
    write_groups(out / "groups.csv", [(path, cluster) for path, cluster in clusters if sizes[cluster] > 1])
