"""Examine every image of a folder or another source: the usable images, and all findings that need no comparison."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from headstart.data.source import Source
from headstart.data_doctor.balance import Named, thin_classes
from headstart.data_doctor.examine import Good, examine
from headstart.data_doctor.findings import KEEP, Finding
from headstart.data_doctor.survey import survey
from headstart.results import Census
from headstart.runtime.hardware import usable_cores


@dataclass(frozen=True)
class Checked:
    """The images of a source. counts: usable images of each (split, class), zeros included."""

    source: Source
    num_files: int
    good: list[Good]
    findings: list[Finding]
    counts: Counter[tuple[str, str]]
    census: Census


def check_files(
    source: Source,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Checked:
    """Read, hash and decode every file of a source, and compare the classes with each other.

    num_threads: None for one per core; progress: called in threads with the number of files just done (1).
    Raises InputError if there is nothing to check. Whatever is in the files is a finding, not an error.
    """
    found = survey(source)
    one_at_a_time = threading.RLock()

    def check(file: Named) -> tuple[Good | None, list[Finding]]:
        with ExitStack() as turn:
            result = examine(source, file, large=lambda: turn.enter_context(one_at_a_time))
        if progress is not None:
            progress(1)
        return result

    with ThreadPoolExecutor(num_threads or usable_cores()) as pool:
        results = list(pool.map(check, found.files))
    good = [image for image, _ in results if image is not None]
    findings = found.findings + [finding for _, ours in results for finding in ours]
    counts: Counter[tuple[str, str]] = Counter(dict.fromkeys(found.classes, 0))
    counts.update((image.file.split, image.file.label) for image in good)
    findings += _compare_classes(counts) + thin_classes(counts)
    return Checked(source, len(found.files), good, findings, counts, _census(good))


def _compare_classes(counts: Counter[tuple[str, str]]) -> list[Finding]:
    found = []
    splits = sorted({split for split, _ in counts})
    for label in sorted({label for _, label in counts}):
        there = [split for split in splits if (split, label) in counts]
        for split in there:
            folder = f"{split}/{label}" if split else label
            if not counts[(split, label)]:
                found.append(Finding.of("empty_class", folder, "no usable image", KEEP))
        if len(there) < len(splits):
            message = f"in {' and '.join(there)} only"
            found.append(Finding.of("class_in_one_split", f"{there[0]}/{label}", message, KEEP))
    return found


def _census(good: list[Good]) -> Census:
    by_area = sorted((image.size for image in good), key=lambda size: size[0] * size[1])
    return Census(
        formats=dict(Counter(image.format for image in good).most_common()),
        modes=dict(Counter(image.mode for image in good).most_common()),
        rotated=sum(image.orientation != 1 for image in good),
        smallest=by_area[0] if by_area else None,
        median=by_area[len(by_area) // 2] if by_area else None,
        largest=by_area[-1] if by_area else None,
    )
