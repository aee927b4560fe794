"""`headstart report`, and what every run calls at its end: report.html and README.md of a run folder."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from headstart.config import DataConfig
from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.report.document import render
from headstart.report.gallery import Gallery, hang
from headstart.report.model_card import model_card
from headstart.runs.finished_run import RunFacts, read_run
from headstart.runs.lock import repeated_runs


def write_pages(
    path: Path,
    *,
    read: Callable[[str], bytes] | str,
    summary: Mapping[str, Any] | None = None,
    doctor: Path | None = None,
    data: str | None = None,
) -> Gallery:
    """report.html and README.md. read: an image's bytes by its path, or why there are none; data: where somebody says that the
    images are. Raises InputError, and leaves old pages alone, if the folder lacks something or `data` has none of the images."""
    facts = read_run(path, summary=summary, doctor=doctor)
    gallery = hang(facts, read)
    if data is not None and not gallery.shows_some:
        raise InputError(f"--data {data} is not where the images of {path} are: {'; '.join(gallery.unread)}")
    card, page = model_card(facts), render(facts, gallery)
    write_atomically(path / "README.md", lambda staging: staging.write_text(card, encoding="utf-8"))
    write_atomically(path / "report.html", lambda staging: staging.write_text(page, encoding="utf-8"))
    return gallery


def report_command(run: str, *, data: str | None, doctor: str | None) -> Path:
    """Write the pages of a finished run anew and say where. Raises InputError."""
    path = Path(run)
    if names := repeated_runs(path):
        raise InputError(
            f"{run} holds repeated runs, each with a report of its own; name one of them, such as {path / names[0]}"
        )
    read = _reader(read_run(path), data)
    gallery = write_pages(path, read=read, doctor=Path(doctor) if doctor else None, data=data)
    for line in gallery.unread:
        print(line if data else f"{line}; --data names where they are now")
    out = path / "report.html"
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB, and README.md, the model card")
    return out


def _reader(facts: RunFacts, data: str | None) -> Callable[[str], bytes] | str:
    from headstart.data.sources.open import open_source

    try:
        config = DataConfig(**facts.config["data"])
    except (TypeError, InputError) as error:
        return f"none of the images can be shown: the configuration is of another version of headstart ({error})"
    if data is not None:
        config = replace(config, root=data)
    try:
        return open_source(config).read
    except InputError as error:
        if data is not None:
            raise
        return f"none of the images can be shown: {error}"
