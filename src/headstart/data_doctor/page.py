"""`doctor.html`: one self-contained file with thumbnails."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headstart.data.decode import UnreadableImage, decode
from headstart.data_doctor.check import Checked
from headstart.data_doctor.findings import KINDS, Finding, number_of
from headstart.html import environment, jpeg_uri
from headstart.wording import shown

THUMBNAIL_PX = 144
MAX_FINDINGS = 60  # shown per kind; doctor.json has them all
MAX_IMAGES = 8  # shown per finding


def doctor_page(checked: Checked, findings: Sequence[Finding], lines: Sequence[str]) -> str:
    """The report as HTML. findings: in the order of their kinds; lines: the description of the data."""
    sections = []
    for kind, about in KINDS.items():
        if ours := [finding for finding in findings if finding.kind == kind]:
            sections.append(
                {
                    "kind": kind,
                    "title": about.title,
                    "counted": number_of(kind, len(ours)),
                    "what_to_do": about.what_to_do,
                    "entries": [_entry(checked.source.read, finding) for finding in ours[:MAX_FINDINGS]],
                    "more": max(0, len(ours) - MAX_FINDINGS),
                }
            )
    counts, root = checked.counts, checked.source.root
    splits = sorted({split for split, _ in counts})
    rows = [
        (shown(label), [str(counts[(split, label)]) if (split, label) in counts else "no folder" for split in splits])
        for label in sorted({label for _, label in counts})
    ]
    page = environment().get_template("doctor.html")
    return page.render(
        root=shown(Path(root).name or root),
        lines=lines,
        sections=sections,
        files=checked.num_files,
        splits=[split or "images" for split in splits],
        rows=rows,
    )


def _entry(read: Callable[[str], bytes], finding: Finding) -> dict[str, Any]:
    shown_first = list(zip(finding.paths, finding.suggestions, strict=True))[:MAX_IMAGES]
    pictured = KINDS[finding.kind].pictured
    files = [
        {"path": shown(path), "suggestion": suggestion, "picture": _picture(read, path) if pictured else None}
        for path, suggestion in shown_first
    ]
    return {"message": shown(finding.message), "files": files, "more": len(finding.paths) - len(files)}


def _picture(read: Callable[[str], bytes], path: str) -> str | None:
    """The image as a small JPEG in a data URI; None if it can no longer be read."""
    try:
        image = decode(read(path))
    except (UnreadableImage, OSError):
        return None
    image.thumbnail((2 * THUMBNAIL_PX, THUMBNAIL_PX))
    return jpeg_uri(image)
