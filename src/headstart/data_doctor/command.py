"""`headstart data check`: run the checks, describe the data, write the report."""

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from headstart.config import RunConfig
from headstart.data_doctor.fixes import write_fixes, write_groups
from headstart.data_doctor.inspection import Progress, Report, inspect
from headstart.data_doctor.page import doctor_page
from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.results import DataReport
from headstart.wording import counted, shown

REPORT_FILES = ("doctor.json", "doctor.html", "fixes.csv", "groups.csv")


def check_data(
    config: RunConfig,
    *,
    labels: bool,
    out: str | None,
    progress: Progress = nullcontext,
) -> DataReport:
    """Check config.data.root and write the report to the folder `out`. progress: as in `inspect`. Raises
    InputError before the checks if it cannot be written."""
    if out is not None:
        _check_report_folder(Path(out), Path(config.data.root))
    report = inspect(config, labels=labels, progress=progress)
    found = report.result()
    if out is not None:
        write_report(report, found, Path(out))
    return found


def summary_lines(found: DataReport) -> list[str]:
    """A description of the data, with or without problems."""
    census = found.census
    lines = [
        f"{shown(found.root)}: {counted(found.num_files, 'file')}, "
        f"{counted(found.num_images, 'usable image')}, {counted(len(found.classes), 'class', 'classes')}"
    ]
    if census.smallest and census.median and census.largest:
        named = (("smallest", census.smallest), ("median", census.median), ("largest", census.largest))
        sizes = ", ".join(f"{name} {width}x{height}" for name, (width, height) in named)
        lines.append(f"formats: {_list(census.formats)}; colour modes: {_list(census.modes)}")
        lines.append(f"sizes, px: {sizes}; rotated by EXIF: {census.rotated}")
    if found.label_check is not None:
        lines.append(
            f"labels: a cross-validated linear probe agrees with {100 * found.label_check.accuracy:.1f}% of "
            f"{found.label_check.images}; at most an estimated {100 * found.label_check.estimated_wrong:.1f}% are "
            "wrong, hard images included, which a probe cannot tell from wrong labels"
        )
    return [*lines, *found.notes]


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _check_report_folder(out: Path, root: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if any((out / name).exists() for name in REPORT_FILES):
        raise InputError(f"--out {out} already contains a report, perhaps with edited fixes; name another folder")
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"--out {out} lies inside the data; name a place outside {root}")


def write_report(report: Report, found: DataReport, out: Path) -> None:
    """REPORT_FILES in `out`, each written atomically. found: report.result()."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; name another place") from None
    checked = report.checked
    page = doctor_page(checked, report.findings, summary_lines(found))
    for name, content in (("doctor.json", found.to_json() + "\n"), ("doctor.html", page)):
        write_atomically(out / name, lambda path, content=content: path.write_text(content, encoding="utf-8"))  # type: ignore[misc]
    write_fixes(out / "fixes.csv", report.findings)
    clusters = [(image.file.path, int(report.cluster_of[image.sha256])) for image in checked.good]
    sizes = Counter(cluster for _, cluster in clusters)
    write_groups(out / "groups.csv", [(path, cluster) for path, cluster in clusters if sizes[cluster] > 1])
