"""`headstart report`, and the last step of every run: report.html and README.md of a run folder."""

from pathlib import Path

from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.report.gallery import Gallery, make_gallery
from headstart.report.original_images import ReadImage, image_reader
from headstart.report.pages import render_model_card, render_report
from headstart.runs.finished_run import FinishedRun, read_run
from headstart.runs.lock import repeated_runs
from headstart.runs.summary import Summary


def write_pages(path: Path, *, read: ReadImage, summary: Summary | None = None) -> None:
    """Write report.html and README.md of a run. summary: the content of summary.json if that file is not written yet.

    Raises InputError, and leaves old pages alone, if the folder lacks something."""
    run = read_run(path, summary=summary)
    _write(run, make_gallery(run, read))


def report_command(path: str, *, data: str | None, doctor: str | None) -> Path:
    """Write the pages of a finished run again and print where they are. data: where the images are now.

    Raises InputError, also if `data` has none of the images."""
    if names := repeated_runs(Path(path)):
        raise InputError(
            f"{path} holds repeated runs with a report each; name one of them, such as {Path(path) / names[0]}"
        )
    run = read_run(Path(path), doctor=Path(doctor) if doctor else None)
    gallery = make_gallery(run, image_reader(run.config["data"], data))
    if data is not None and not gallery.has_images:
        raise InputError(f"--data {data} does not contain the images of {path}: {'; '.join(gallery.unread)}")
    _write(run, gallery)
    for line in gallery.unread:
        print(line if data else f"{line}; use --data to name their current folder")
    out = run.path / "report.html"
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB, and README.md, the model card")
    return out


def _write(run: FinishedRun, gallery: Gallery) -> None:
    card, page = render_model_card(run), render_report(run, gallery)  # both before the first file is replaced
    write_atomically(run.path / "README.md", lambda staging: staging.write_text(card, encoding="utf-8"))
    write_atomically(run.path / "report.html", lambda staging: staging.write_text(page, encoding="utf-8"))
