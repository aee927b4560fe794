"""`doctor.html`: one self-contained file with thumbnails."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.data.decode import UnreadableImage, decode
from headstart.data.sources.folders import ClassFolders
from headstart.data_doctor.check import Checked
from headstart.data_doctor.findings import KINDS, Finding, number_of
from headstart.data_doctor.fixes import fix_lines
from headstart.html import environment, jpeg_uri
from headstart.wording import shown

THUMBNAIL_PX = 144
MAX_FINDINGS = 60  # shown per kind; doctor.json has them all
MAX_IMAGES = 8  # shown per finding


def doctor_page(checked: Checked, findings: Sequence[Finding], lines: Sequence[str]) -> str:
    """The report as HTML. findings: in the order of their kinds; lines: the description of the data."""
    lines_of_fixes = fix_lines(findings)
    numbers = {(path, kind): number for number, (path, kind, _) in enumerate(lines_of_fixes)}
    sections = []
    for kind, about in KINDS.items():
        if ours := [finding for finding in findings if finding.kind == kind]:
            sections.append(
                {
                    "kind": kind,
                    "title": about.title,
                    "counted": number_of(kind, len(ours)),
                    "what_to_do": about.what_to_do,
                    "entries": [_entry(checked.source.read, finding, numbers) for finding in ours[:MAX_FINDINGS]],
                    "more": max(0, len(ours) - MAX_FINDINGS),
                }
            )
    counts, root = checked.counts, checked.source.root
    splits = sorted({split for split, _ in counts})
    rows = [
        (shown(label), [str(counts[(split, label)]) if (split, label) in counts else "no folder" for split in splits])
        for label in sorted({label for _, label in counts})
    ]
    links = [
        ("found", "Findings"),
        ("classes", "Classes"),
        *((section["kind"], section["title"]) for section in sections),
        ("glossary", "Glossary"),
    ]
    fixes = {"key": f"fixes {_digest(lines_of_fixes)}", "lines": lines_of_fixes}
    page = environment().get_template("doctor.html")
    return page.render(
        root=shown(Path(root).name or root),
        data=shown(root),
        is_folder=isinstance(checked.source, ClassFolders),
        links=links,
        folders=sorted(shown(f"{split}/{label}" if split else label) for split, label in counts),
        fixes=fixes,
        lines=lines,
        sections=sections,
        files=checked.num_files,
        splits=[split or "images" for split in splits],
        rows=rows,
    )


def _entry(read: Callable[[str], bytes], finding: Finding, numbers: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """numbers: by path and kind, the line of fixes.csv; only files that can be dropped or moved get it."""
    shown_first = list(zip(finding.paths, finding.suggestions, strict=True))[:MAX_IMAGES]
    about = KINDS[finding.kind]
    files = [
        {
            "path": shown(path),
            "suggestion": suggestion,
            "picture": _picture(read, path) if about.pictured else None,
            "line": numbers.get((path, finding.kind)) if about.about_files else None,
        }
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


def _digest(lines: Sequence[tuple[str, str, str]]) -> str:
    """Names the decisions that a browser stores, so that those of another check are not taken for them."""
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]
