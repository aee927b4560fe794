"""A folder of predictions: parquet parts of the rows of a stored list, which several processes share and a restart
resumes.

    _images.parquet                              the list, as it was when the first command started
    _settings.json                               how it is predicted; written last, so with it the folder is complete
    part-000000000000-000000004096.parquet       rows 0 to 4095 of the list, in order; written whole or not at all
    _summary.json                                written when no row is missing

Every row of the list is in exactly one part. Readers of parquet data sets ignore files with _ and . in front, so
`pyarrow.parquet.read_table(FOLDER)` is the table."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headstart.errors import InputError
from headstart.files import write_atomically, write_json
from headstart.predict.image_paths import Listed
from headstart.predict.output_table import BUFFERED_ROWS
from headstart.wording import one_line

LIST, SETTINGS, SUMMARY = "_images.parquet", "_settings.json", "_summary.json"
_PART = re.compile(r"part-(\d{12})-(\d{12})\.parquet")
_LIST_SCHEMA = pa.schema([("path", pa.string()), ("error", pa.string())])


@dataclass(frozen=True)
class PartsFolder:
    """block_rows: rows of the list that a process takes at a time."""

    folder: Path
    num_images: int
    block_rows: int

    def missing(self, *, process: int, num_processes: int) -> list[tuple[int, int]]:
        """Ranges of rows without a part, in the blocks of this process: block b belongs to process b %
        num_processes."""
        ends = {start: stop for start, stop, _ in self.parts()}
        found = []
        for block in range(process, -(-self.num_images // self.block_rows), num_processes):
            at, end = block * self.block_rows, min(self.num_images, (block + 1) * self.block_rows)
            while at in ends:  # a stopped run leaves a part of a block
                at = ends[at]
            if at < end:
                found.append((at, end))
        return found

    def images(self, ranges: Iterable[tuple[int, int]]) -> Iterator[list[Listed]]:
        """The rows of each range, which lies in one block."""
        path = self.folder / LIST
        try:
            stored = pq.ParquetFile(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise InputError(f"{path} is damaged ({one_line(error)}); name a new folder") from None
        with stored:
            for start, stop in ranges:
                block, first = divmod(start, self.block_rows)
                rows = stored.read_row_group(block).slice(first, stop - start)
                yield list(map(Listed, rows["path"].to_pylist(), rows["error"].to_pylist()))

    def write_part(self, start: int, rows: Sequence[pa.RecordBatch], schema: pa.Schema) -> None:
        """The rows from `start` on."""
        table = pa.Table.from_batches(rows, schema)
        path = self.folder / f"part-{start:012d}-{start + len(table):012d}.parquet"
        write_atomically(path, lambda staging: pq.write_table(table, staging, row_group_size=BUFFERED_ROWS))

    def parts(self) -> list[tuple[int, int, Path]]:
        """(first row, row after the last, file), in order."""
        found = [(match, path) for path in self.folder.iterdir() if (match := _PART.fullmatch(path.name))]
        return sorted((int(match[1]), int(match[2]), path) for match, path in found)

    def finish(self) -> dict[str, Any] | None:
        """Write the summary, the counts of all parts, if no row is missing; the content is the same whichever process
        writes it. Raises InputError for an altered part."""
        parts = self.parts()
        at = 0
        for start, stop, path in parts:
            if start > at:
                return None
            if start < at:
                raise _altered(path)
            at = stop
        if at < self.num_images:
            return None
        counts: Counter[str | None] = Counter()
        for start, stop, path in parts:
            try:
                predicted = pq.read_table(path, columns=["predicted"])["predicted"].to_pylist()
            except (OSError, ValueError):  # pyarrow's errors are among these
                raise _altered(path) from None
            if len(predicted) != stop - start:
                raise _altered(path)
            counts.update(predicted)
        unreadable = counts.pop(None, 0)
        summary = {"images": self.num_images, "unreadable": unreadable, "predicted": dict(sorted(counts.items()))}
        write_json(self.folder / SUMMARY, summary)
        for leftover in self.folder.glob(".part-*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        return summary


def _altered(path: Path) -> InputError:
    return InputError(f"{path} is not what was written; delete it and run the same command again")


def begin_or_continue(
    folder: Path, images: Iterable[Listed], settings: Mapping[str, Any], *, block_rows: int
) -> PartsFolder:
    """The folder, with the list stored. Only one process calls this.

    Raises InputError if the folder holds anything else, or predictions for other images or with other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**settings, "part_rows": block_rows}
    if (folder / SETTINGS).exists():
        try:
            stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            before, num_images = stored["settings"], stored["num_images"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / SETTINGS} is damaged ({error}); name a new folder") from None
        for name in [*before, *settings]:
            if before.get(name) != settings.get(name):
                raise InputError(
                    f"--out {folder} was started with {name} {_short(before.get(name))}, not "
                    f"{_short(settings.get(name))}; repeat the first command, name a new folder, or "
                    "add --overwrite"
                )
        parts = PartsFolder(folder, num_images, block_rows)
        _check_list(parts, images)
        return parts
    other = next((p.name for p in sorted(folder.iterdir()) if p.name != LIST and not p.name.startswith(".")), None)
    if other is not None:
        raise InputError(f"--out {folder} contains {other} and no predictions to continue; name a new folder")
    num_images = 0

    def write(staging: Path) -> None:
        nonlocal num_images
        waiting = iter(images)
        with pq.ParquetWriter(staging, _LIST_SCHEMA) as file:
            while block := list(islice(waiting, block_rows)):
                columns = [pa.array([getattr(one, n) for one in block], pa.string()) for n in ("path", "error")]
                file.write_table(pa.Table.from_arrays(columns, schema=_LIST_SCHEMA), row_group_size=block_rows)
                num_images += len(block)

    write_atomically(folder / LIST, write)
    write_json(folder / SETTINGS, {"settings": settings, "num_images": num_images})
    return PartsFolder(folder, num_images, block_rows)


def discard(folder: Path) -> None:
    """Delete the predictions in a folder, whatever their settings. Raises InputError if it holds anything else."""
    if not (folder / SETTINGS).exists():
        return
    found = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    ours = [path for path in found if path.name in (SETTINGS, LIST, SUMMARY) or _PART.fullmatch(path.name)]
    if other := next((path.name for path in found if path not in ours), None):
        raise InputError(f"--out {folder} also contains {other}; move it away, or name a new folder")
    (folder / SETTINGS).unlink()  # first: without it there is nothing to continue
    for path in ours:
        path.unlink(missing_ok=True)


def _check_list(parts: PartsFolder, images: Iterable[Listed]) -> None:
    blocks = range(0, parts.num_images, parts.block_rows)
    stored = parts.images((start, min(start + parts.block_rows, parts.num_images)) for start in blocks)
    for row, (before, now) in enumerate(zip_longest(chain.from_iterable(stored), images)):
        if before != now:
            was, found = ("nothing" if one is None else one.path for one in (before, now))
            raise InputError(
                f"--out {parts.folder} was started with other images: image {row + 1} was {was} and is now {found}; "
                "repeat the first command, name a new folder, or add --overwrite"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
