"""`headstart open`: a page of a run in the browser of this machine."""

import os
import sys
import webbrowser
from pathlib import Path

from headstart.cli.output import clickable
from headstart.config_io import repeated_runs
from headstart.errors import InputError
from headstart.runs.lock import has_begun, is_finished, resume_command
from headstart.wording import command_line


def report_of(run: str) -> Path:
    """report.html of a run, or of a folder of repeated runs. Raises InputError if there is none."""
    folder, page = Path(run), Path(run) / "report.html"
    if not folder.is_dir():
        raise InputError(f"{run} {'is a file' if folder.exists() else 'does not exist'}; name the folder of a run")
    if page.is_file():
        return page
    if is_finished(folder):
        raise InputError(f"{run} has no report.html; write it with: {command_line('report', run)}")
    if has_begun(folder) or repeated_runs(folder):
        raise InputError(f"{run} is not finished, so it has no report yet; to continue it: {resume_command(folder)}")
    raise InputError(f"{run} does not contain a run; name the folder of a finished run")


def open_page(page: Path) -> None:
    """Print the path of the page, and open it if this machine has a display."""
    print(clickable(page), flush=True)
    if has_display():
        webbrowser.open(page.absolute().as_uri())


def has_display() -> bool:
    """Whether a browser that is started here would be seen: not in a session over SSH, a container or a job."""
    if sys.platform in ("win32", "darwin"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
