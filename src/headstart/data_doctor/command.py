"""`headstart data check`: run the checks, describe the data, write the report."""

import shutil
import uuid
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from headstart.config import RunConfig
from headstart.data_doctor.fixes import write_csv, write_fixes
from headstart.data_doctor.inspection import Progress, Report, inspect
from headstart.data_doctor.page import doctor_page
from headstart.errors import InputError
from headstart.files import check_links, check_local, check_outside, write_text
from headstart.results import DataReport
from headstart.wording import plural, shown

REPORT_FILES = ("doctor.json", "doctor.html", "fixes.csv", "groups.csv")


def check_data(
    config: RunConfig, *, labels: bool, out: str | None, progress: Progress = nullcontext, excel: bool = False
) -> DataReport:
    """Check config.data.root and write the report to the folder `out`. progress: as in `inspect`; excel: whether the
    .csv files are meant for spreadsheet programs. Raises InputError before the checks if it cannot be written."""
    folder = None if out is None else Path(out)
    if folder is not None:
        check_local(str(out))
        check_links(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out {out} is a file; name a folder")
        if any((folder / name).exists() for name in REPORT_FILES):
            raise InputError(f"--out {out} already contains a report, perhaps with edited fixes; name another folder")
        check_outside(folder, config.data.root)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # such files decode all the same, or are findings
        report = inspect(config, labels=labels, progress=progress)
    if folder is not None:
        _write_report(report, folder, excel=excel)
    return report.result


def summary_lines(found: DataReport) -> list[str]:
    """A description of the data, with or without problems."""
    census = found.census
    lines = [
        f"{shown(found.root)}: {plural(found.num_files, 'file')}, "
        f"{plural(found.num_images, 'usable image')}, {plural(len(found.classes), 'class', 'classes')}"
    ]
    if census.smallest and census.median and census.largest:
        named = (("smallest", census.smallest), ("median", census.median), ("largest", census.largest))
        sizes = ", ".join(f"{name} {width}x{height}" for name, (width, height) in named)
        formats, modes = (", ".join(f"{name} {n}" for name, n in by.items()) for by in (census.formats, census.modes))
        lines.append(f"formats: {formats}; colour modes: {modes}")
        lines.append(f"sizes, px: {sizes}; rotated by EXIF: {census.rotated}")
    if found.label_check is not None:
        lines.append(
            f"labels: a cross-validated linear probe agrees with {100 * found.label_check.accuracy:.1f}% of "
            f"{found.label_check.images}; at most an estimated {100 * found.label_check.estimated_wrong:.1f}% are "
            "wrong, hard images included, which a probe cannot tell from wrong labels"
        )
    return [*lines, *found.notes]


def _write_report(report: Report, out: Path, *, excel: bool) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; name another place") from None
    staging = out / f".{uuid.uuid4().hex[:12]}.tmp"
    try:
        staging.mkdir()
        _write_files(report, staging, excel=excel)
        for name in REPORT_FILES:  # all of them or none
            (staging / name).replace(out / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_files(report: Report, out: Path, *, excel: bool) -> None:
    page = doctor_page(report.checked, report.result.findings, summary_lines(report.result))
    write_text(out / "doctor.json", report.result.to_json() + "\n")
    write_text(out / "doctor.html", page)
    write_fixes(out / "fixes.csv", report.result.findings, excel=excel)
    clusters = [(image.file.path, int(report.cluster_of[image.sha256])) for image in report.checked.good]
    sizes = Counter(cluster for _, cluster in clusters)
    write_csv(
        out / "groups.csv",
        ("path", "group"),
        [(path, cluster) for path, cluster in clusters if sizes[cluster] > 1],
        excel=excel,
    )
