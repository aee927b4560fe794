"""A folder of predictions: parquet parts of the rows of a stored list, so that any number of processes share the work and a run that was killed
continues. Every row of the list is in exactly one part.

    _images.parquet                              the list, as it was when the job began
    _job.json                                    what was asked; written last, so with it the job has begun
    part-000000000000-000000004096.parquet       rows 0 to 4095 of the list, in order; written whole or not at all
    _summary.json                                written when no row is missing

Readers of parquet data sets leave files with _ and . alone, so `pyarrow.parquet.read_table(FOLDER)` is the table.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.predict.image_paths import Listed
from headstart.predict.output_table import TableFile

LIST, JOB, SUMMARY = "_images.parquet", "_job.json", "_summary.json"
_PART = re.compile(r"part-(\d{12})-(\d{12})\.parquet")
_LIST_SCHEMA = pa.schema([("path", pa.string()), ("error", pa.string())])


@dataclass(frozen=True)
class Job:
    """block_rows: of the list, which one process takes at a time."""

    folder: Path
    num_images: int
    block_rows: int

    def missing(self, *, process: int, num_processes: int) -> list[tuple[int, int]]:
        """Ranges of rows that no part holds, in the blocks of this process: block b belongs to process b % num_processes."""
        ends = {start: stop for start, stop, _ in self.parts()}
        found = []
        for block in range(process, -(-self.num_images // self.block_rows), num_processes):
            at, end = block * self.block_rows, min(self.num_images, (block + 1) * self.block_rows)
            while at in ends:  # a run that was asked to stop leaves a part of a block
                at = ends[at]
            if at < end:
                found.append((at, end))
        return found

    def images(self, ranges: Iterable[tuple[int, int]]) -> Iterator[list[Listed]]:
        """The rows of each range; a range lies in one block."""
        path = self.folder / LIST
        try:
            stored = pq.ParquetFile(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); name a new folder") from None
        with stored:
            for start, stop in ranges:
                block, first = divmod(start, self.block_rows)
                rows = stored.read_row_group(block).slice(first, stop - start)
                yield list(map(Listed, rows["path"].to_pylist(), rows["error"].to_pylist()))

    def write_part(self, start: int, rows: Sequence[pa.RecordBatch], schema: pa.Schema) -> None:
        """The rows from `start` on."""
        stop = start + sum(len(batch) for batch in rows)

        def write(staging: Path) -> None:
            file = TableFile(staging, schema, suffix=".parquet")
            for batch in rows:
                file.write(batch)
            file.close()

        write_atomically(self.folder / f"part-{start:012d}-{stop:012d}.parquet", write)

    def parts(self) -> list[tuple[int, int, Path]]:
        """(first row, row after the last, file), in order."""
        found = [(match, path) for path in self.folder.iterdir() if (match := _PART.fullmatch(path.name))]
        return sorted((int(match[1]), int(match[2]), path) for match, path in found)

    def summarize(self) -> dict[str, Any] | None:
        """What all parts hold; None while rows are missing. Raises InputError for parts that cannot be what was written."""
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
                said = pq.read_table(path, columns=["predicted"])["predicted"].to_pylist()
            except (OSError, ValueError):  # pyarrow's errors are among these
                raise _altered(path) from None
            if len(said) != stop - start:
                raise _altered(path)
            counts.update(said)
        unread = counts.pop(None, 0)
        return {"images": self.num_images, "unreadable": unread, "predicted": dict(sorted(counts.items()))}

    def finish(self) -> dict[str, Any] | None:
        """Write the summary if no row is missing, whoever sees that first; the same content whoever writes it."""
        summary = self.summarize()
        if summary is not None:
            text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
            write_atomically(self.folder / SUMMARY, lambda path: path.write_text(text, encoding="utf-8"))
            for left in self.folder.glob(".part-*.tmp"):  # by a process that was killed
                left.unlink(missing_ok=True)
        return summary


def _altered(path: Path) -> InputError:
    return InputError(f"{path} is not as it was written; delete it, and the same command makes it anew")


def begin_or_continue(folder: Path, images: Iterable[Listed], asked: Mapping[str, Any], *, block_rows: int) -> Job:
    """The job in `folder`, whose list is stored first of all; only one process calls this. Raises InputError if another job, or something else, is there."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = {**asked, "part_rows": block_rows}
    if (folder / JOB).exists():
        before = _read(folder / JOB)
        _check_same(folder, before["asked"], asked)
        job = Job(folder, before["num_images"], block_rows)
        _check_list(job, images)
        return job
    other = next((p.name for p in sorted(folder.iterdir()) if p.name != LIST and not p.name.startswith(".")), None)
    if other is not None:
        raise InputError(f"--out {folder} holds {other} and is no job of predictions; name a new folder")
    num_images = 0

    def write(staging: Path) -> None:
        nonlocal num_images
        with pq.ParquetWriter(staging, _LIST_SCHEMA) as file:
            for block in _blocks(images, block_rows):
                columns = [pa.array([getattr(one, n) for one in block], pa.string()) for n in ("path", "error")]
                file.write_table(pa.Table.from_arrays(columns, schema=_LIST_SCHEMA), row_group_size=block_rows)
                num_images += len(block)

    write_atomically(folder / LIST, write)
    text = json.dumps({"asked": asked, "num_images": num_images}, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / JOB, lambda path: path.write_text(text, encoding="utf-8"))
    return Job(folder, num_images, block_rows)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["asked"], values["num_images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); name a new folder") from None
    return dict(values)


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            raise InputError(
                f"--out {folder} was begun with {name} {_short(before.get(name))} and this is {_short(now.get(name))}; "
                "repeat the first command, or name a new folder"
            )


def _check_list(job: Job, images: Iterable[Listed]) -> None:
    blocks = range(0, job.num_images, job.block_rows)
    stored = job.images((start, min(start + job.block_rows, job.num_images)) for start in blocks)
    for row, (before, now) in enumerate(zip_longest(chain.from_iterable(stored), images)):
        if before != now:
            was, found = ("nothing" if one is None else one.path for one in (before, now))
            raise InputError(
                f"--out {job.folder} was begun with another list of images: image {row + 1} was {was} and is {found} now; "
                "repeat the first command, or name a new folder"
            )


def _blocks(images: Iterable[Listed], size: int) -> Iterator[list[Listed]]:
    block: list[Listed] = []
    for image in images:
        block.append(image)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
