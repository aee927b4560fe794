"""A folder of predictions: parquet parts of the rows of a stored list, which several processes share and a restart
resumes.

    FOLDER/part-000000000000-000000004096.parquet    rows 0 to 4095 of the list, in order; written whole or not at all
    .FOLDER.headstart/images      the list as parquet, as it was when the first command started
    .FOLDER.headstart/settings    how it is predicted, as JSON; written last, so with it the state is complete
    .FOLDER.headstart/summary     counts, as JSON; written when no row is missing

Every row of the list is in exactly one part. The state lies beside the folder, because some readers also look into
hidden folders below it."""

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
from headstart.predict.image_paths import NO_COLUMNS, Listed
from headstart.predict.kept_columns import KeptColumns
from headstart.predict.output_table import BUFFERED_ROWS
from headstart.wording import one_line

LIST, SETTINGS, SUMMARY = "images", "settings", "summary"
_FORMER_NAMES = {"_images.parquet": LIST, "_summary.json": SUMMARY, "_settings.json": SETTINGS}  # inside the folder
_PART = re.compile(r"part-(\d{12})-(\d{12})\.parquet")
_LISTED = ("path", "error", "file")  # the first fields of Listed


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
        path = state_of(self.folder) / LIST
        try:
            stored = pq.ParquetFile(path.absolute())
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise InputError(f"{path} is damaged ({one_line(error)}); name a new folder") from None
        with stored:
            for start, stop in ranges:
                block, first = divmod(start, self.block_rows)
                rows = stored.read_row_group(block).slice(first, stop - start)
                values = [column.to_pylist() for column in rows.columns]
                values[2:] = values[2:] or [[None] * len(rows)]  # a list of a former version has no files
                yield [Listed(path, error, file, tuple(kept)) for path, error, file, *kept in zip(*values, strict=True)]

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
                predicted = pq.read_table(path.absolute(), columns=["predicted"])["predicted"].to_pylist()
            except (OSError, ValueError):  # pyarrow's errors are among these
                raise _altered(path) from None
            if len(predicted) != stop - start:
                raise _altered(path)
            counts.update(predicted)
        unreadable = counts.pop(None, 0)
        summary = {"images": self.num_images, "unreadable": unreadable, "predicted": dict(sorted(counts.items()))}
        write_json(state_of(self.folder) / SUMMARY, summary)
        for leftover in self.folder.glob(".part-*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        return summary


def _altered(path: Path) -> InputError:
    return InputError(f"{path} is not what was written; delete it and run the same command again")


def begin_or_continue(
    folder: Path,
    images: Iterable[Listed],
    settings: Mapping[str, Any],
    *,
    block_rows: int,
    kept: KeptColumns = NO_COLUMNS,
) -> PartsFolder:
    """The folder, with the list stored. kept: the fields of `Listed.kept`. Only one process calls this.

    Raises InputError if the folder holds anything else, or predictions for other images or with other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    state = state_of(folder)
    _adopt_former(folder, state)
    names = {field.name: str(field.type) for field in kept.fields}
    settings = {"keep_columns": names, **settings, "part_rows": block_rows}
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if found and (state / SETTINGS).exists():  # without parts nothing is lost: they may have been deleted on purpose
        try:
            stored = json.loads((state / SETTINGS).read_text(encoding="utf-8"))
            before, num_images = {"keep_columns": {}} | stored["settings"], stored["num_images"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{state / SETTINGS} is damaged ({error}); name a new folder") from None
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
    if found:
        raise InputError(
            f"--out {folder} contains {found[0]} and no predictions to continue (their state would be {state}); "
            "name a new folder"
        )
    num_images = 0

    def write(staging: Path) -> None:
        nonlocal num_images
        waiting = iter(images)
        schema = pa.schema(
            [*((name, pa.string()) for name in _LISTED), *((f"kept {f.name}", f.type) for f in kept.fields)]
        )
        with pq.ParquetWriter(staging, schema) as file:
            while block := list(islice(waiting, block_rows)):
                rows = zip(*((one.path, one.error, one.file, *one.kept) for one in block), strict=True)
                columns = [pa.array(values, field.type) for values, field in zip(rows, schema, strict=True)]
                file.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=block_rows)
                num_images += len(block)

    state.mkdir(exist_ok=True)
    for name in (SETTINGS, SUMMARY):  # of parts that are gone
        (state / name).unlink(missing_ok=True)
    write_atomically(state / LIST, write)
    write_json(state / SETTINGS, {"settings": settings, "num_images": num_images})
    return PartsFolder(folder, num_images, block_rows)


def discard(folder: Path) -> None:
    """Delete the predictions in a folder, whatever their settings. Raises InputError if it holds anything else."""
    state = state_of(folder)
    _adopt_former(folder, state)
    if not (state / SETTINGS).exists():
        return
    parts = sorted(path for path in folder.glob("*") if path.name[0] != ".")
    if other := next((path.name for path in parts if not _PART.fullmatch(path.name)), None):
        raise InputError(f"--out {folder} also contains {other}; move it away, or name a new folder")
    for path in (state / SETTINGS, state / LIST, state / SUMMARY, *parts):  # without settings nothing is continued
        path.unlink(missing_ok=True)


def state_of(folder: Path) -> Path:
    """The folder with the list, the settings and the summary of the parts in `folder`."""
    folder = folder.resolve()
    return folder.parent / f".{folder.name}.headstart"


def _adopt_former(folder: Path, state: Path) -> None:
    """Move the state of an earlier version, which lies among the parts, the settings last."""
    if (folder / "_settings.json").exists():
        state.mkdir(exist_ok=True)
        for former, name in _FORMER_NAMES.items():
            if (folder / former).exists():
                (folder / former).replace(state / name)


def _check_list(parts: PartsFolder, images: Iterable[Listed]) -> None:
    blocks = range(0, parts.num_images, parts.block_rows)
    stored = parts.images((start, min(start + parts.block_rows, parts.num_images)) for start in blocks)
    for row, (before, now) in enumerate(zip_longest(chain.from_iterable(stored), images)):
        if before != now:
            was, found = (_differs(one, other) for one, other in ((before, now), (now, before)))
            raise InputError(
                f"--out {parts.folder} was started with other images: image {row + 1} was {was} and is now {found}; "
                "repeat the first command, name a new folder, or add --overwrite"
            )


def _differs(one: Listed | None, other: Listed | None) -> str:
    """What of an image is not that of the other."""
    if one is None:
        return "nothing"
    if other is None or one.path != other.path:
        return one.path
    return f"{one.path} with {_short(one.kept)}" if one.kept != other.kept else one.file or one.path


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
