"""`doctor.html`: one file that needs nothing else, with thumbnails inside."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.data.decode import UnreadableImage, decode
from headstart.data_doctor.findings import KINDS, Finding, number_of
from headstart.html import environment, jpeg_uri
from headstart.wording import shown

THUMBNAIL_PX = 144
MAX_FINDINGS = 60  # of a kind that are shown; doctor.json has them all
MAX_IMAGES = 8  # of a finding
_NO_PICTURE = {"empty_file", "truncated", "unreadable", "unsupported_pixels", "excessive", "too_large", "bad_name", "hidden",
               "unused_folder", "missing_split", "empty_class", "class_in_one_split", "near_empty_class", "imbalance",
               "unsupported_type", "left_out"}  # fmt: skip


@dataclass(frozen=True)
class _Item:
    path: str
    suggestion: str
    picture: str | None  # a data URI


@dataclass(frozen=True)
class _Entry:
    message: str
    items: list[_Item]
    more: int


@dataclass(frozen=True)
class _Section:
    kind: str
    title: str
    counted: str
    what_to_do: str
    entries: list[_Entry]
    more: int


def doctor_page(
    root: str,
    read: Callable[[str], bytes],
    findings: Sequence[Finding],
    lines: Sequence[str],
    counts: Counter[tuple[str, str]],
    *,
    files: int,
) -> str:
    """The whole report as HTML. read: the file of an image, by its path in a finding; raises OSError. findings: in the order of their kinds; lines: what the folder is; counts: its classes."""
    sections = []
    for kind in KINDS:
        ours = [finding for finding in findings if finding.kind == kind]
        if ours:
            entries = [_entry(read, finding) for finding in ours[:MAX_FINDINGS]]
            about, more = KINDS[kind], max(0, len(ours) - MAX_FINDINGS)
            counted = number_of(kind, len(ours))
            sections.append(_Section(kind, about.title, counted, about.what_to_do, entries, more))
    splits = sorted({split for split, _ in counts})
    rows = [
        (shown(label), [str(counts[(split, label)]) if (split, label) in counts else "no folder" for split in splits])
        for label in sorted({label for _, label in counts})
    ]
    return environment().get_template("doctor.html").render(
        root=shown(Path(root).name or root), lines=lines, sections=sections, files=files,
        splits=[split or "images" for split in splits], rows=rows,
    )  # fmt: skip


def _entry(read: Callable[[str], bytes], finding: Finding) -> _Entry:
    items = [
        _Item(shown(path), suggestion, None if finding.kind in _NO_PICTURE else _picture(read, path))
        for path, suggestion in list(zip(finding.paths, finding.suggestions, strict=True))[:MAX_IMAGES]
    ]
    return _Entry(shown(finding.message), items, len(finding.paths) - len(items))


def _picture(read: Callable[[str], bytes], path: str) -> str | None:
    """The image as a small JPEG in a data URI; None for one that cannot be read any more."""
    try:
        image = decode(read(path))
    except (UnreadableImage, OSError):
        return None
    image.thumbnail((2 * THUMBNAIL_PX, THUMBNAIL_PX))
    return jpeg_uri(image)
