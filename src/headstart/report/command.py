"""`headstart report`, and the last step of every run: report.html and README.md of a run folder."""

from dataclasses import replace
from pathlib import Path

from headstart.config_io import repeated_runs
from headstart.errors import InputError
from headstart.files import write_text
from headstart.report.gallery import make_gallery
from headstart.report.original_images import ReadImage, image_reader
from headstart.report.pages import render_model_card, render_report
from headstart.report.repeats import write_repeats_pages
from headstart.runs.about import read_about, write_about
from headstart.runs.finished_run import read_run
from headstart.runs.summary import Summary


def write_pages(path: Path, *, read: ReadImage, summary: Summary | None = None) -> None:
    """Write report.html and README.md of a run. summary: the content of summary.json if that file is not written yet.

    Raises InputError, and leaves old pages alone, if the folder lacks something."""
    run = read_run(path, summary=summary)
    gallery = make_gallery(run, read)
    _write_files(path, render_model_card(run), render_report(run, gallery))


def report_command(
    path: str,
    *,
    data: str | None,
    doctor: str | None,
    purpose: str | None = None,
    author: str | None = None,
) -> Path:
    """Write the pages of a finished run, or of repeated runs, again and print where they are. data: where the images
    are now. purpose, author: texts that the folder keeps from now on; None leaves them as they are, an empty text
    removes them.

    Raises InputError, also if `data` has none of the images."""
    is_changed = purpose is not None or author is not None
    if names := repeated_runs(Path(path)):
        if data or doctor:
            option = "--data" if data else "--doctor"
            raise InputError(
                f"{option}: the report of repeated runs shows no images and no findings; name one of the runs in "
                f"{path}, such as {Path(path) / names[0]}"
            )
        texts = read_about(Path(path)).changed(purpose=purpose, author=author) if is_changed else None
        return _print_size(write_repeats_pages(Path(path), about=texts))
    run = read_run(Path(path), doctor=Path(doctor) if doctor else None)
    gallery = make_gallery(run, image_reader(run.config["data"], data))
    if data is not None and not gallery.has_images:
        raise InputError(f"--data {data} does not contain the images of {path}: {'; '.join(gallery.unread)}")
    about = run.about.changed(purpose=purpose, author=author)
    run = replace(run, about=about)
    card, page = render_model_card(run), render_report(run, gallery)  # before the first file is replaced
    if is_changed:
        write_about(run.path, about)
    _write_files(run.path, card, page)
    for line in gallery.unread:
        print(line if data else f"{line}; use --data to name their current folder")
    return _print_size(run.path / "report.html")


def _print_size(page: Path) -> Path:
    num_bytes = page.stat().st_size
    size = f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"
    print(f"{page}: {size}, and README.md, the model card")
    return page


def _write_files(folder: Path, card: str, page: str) -> None:
    write_text(folder / "README.md", card)
    write_text(folder / "report.html", page)
