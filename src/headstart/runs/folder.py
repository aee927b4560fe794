"""The run folder: what a run leaves behind, written atomically, and where a run may begin."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import InputError
from headstart.files import fsync, write_atomically
from headstart.runs.lock import RUNNING, writer_of

if TYPE_CHECKING:  # imported where it is used: only tables need it
    import pyarrow as pa


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # of write_atomically


class RunFolder:
    """One run's files. Only the main process makes one. also_tell: hears every line of metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.also_tell: Callable[[Mapping[str, Any]], None] | None = None

    @property
    def model_file(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def write_text(self, name: str, text: str) -> None:
        write_atomically(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_table(self, name: str, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        write_atomically(self.path / name, lambda path: pq.write_table(table, path))

    def log(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl. A line cut short by a crash is removed when the run is resumed."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, allow_nan=False) + "\n")
        if self.also_tell is not None:
            self.also_tell(record)

    def fsync_metrics(self) -> None:
        """What was logged so far outlives a power failure."""
        if (self.path / "metrics.jsonl").exists():
            fsync(self.path / "metrics.jsonl")

    def forget_metrics_after(self, step: int, *, epoch: int) -> None:
        """Drop the lines of steps and of measured epochs that are about to be done again, and a half-written last line."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            row = json.loads(line)
            again = step == 0 if row.get("epoch") == 0 else row.get("epoch", 0) > epoch  # epoch 0: the probe
            if row["step"] > step or again:
                break
            kept.append(line)
        self.write_text("metrics.jsonl", "".join(kept))


def choose_folder(out: str, *, strategy: str) -> Path:
    """`out`, or the first free runs/<strategy>-<number>."""
    if out:
        return Path(out)
    number = 1
    while Path("runs", f"{strategy}-{number:03d}").exists():
        number += 1
    return Path("runs", f"{strategy}-{number:03d}")


def check_new_folder(path: Path) -> None:
    """Raise InputError unless a run folder can be made there; nothing is made yet."""
    if path.is_dir() and any(path.iterdir()):
        what = "holds a run" if (path / "config.yaml").exists() else "is not empty"
        raise InputError(
            f"--out {path} {what}; name another folder, or continue an interrupted run with --train.resume auto"
        )
    nearest = path.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"--out {path}: {nearest} is a file, so no folder can be made there; name another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--out {path}: no permission to write in {nearest}; name another place")


def check_start(path: Path, *, resume: str) -> None:
    """Raise InputError unless a run can begin there: nothing is there yet, or, with `resume` auto, only what a killed one left."""
    if resume != "auto" or not is_unfinished(path):
        check_new_folder(path)
    check_nobody_writes(path)


def check_nobody_writes(path: Path) -> None:
    """Raise InputError if a process of this machine has a run going on there."""
    if (process := writer_of(path)) is not None:
        raise InputError(f"--out {path}: process {process} is writing there; wait for it, or name another folder")


def is_unfinished(path: Path) -> bool:
    """Whether a run was begun there, and nothing else is there: what a kill before the first checkpoint leaves."""
    if not path.is_dir() or (path / "summary.json").exists():
        return False
    names = {entry.name for entry in path.iterdir() if not _TEMPORARY.fullmatch(entry.name)}
    return names <= {"checkpoints", RUNNING} or ("config.yaml" in names and "checkpoints" in names)


def create_folder(path: Path, *, new: bool = False, numbered: bool = False) -> RunFolder:
    """Make the folder, and remove what a killed process left half-written in it.

    new: no run is continued there, so two that begin at once must not both have it; numbered: `path` is from
    `choose_folder` without a name, so the next free one will do.
    Raises InputError with the system's reason if it cannot be made, or if another run was faster.
    """
    try:
        while new and numbered:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
                break
            except FileExistsError:
                path = path.with_name(f"{path.name.rpartition('-')[0]}-{int(path.name.rpartition('-')[2]) + 1:03d}")
        path.mkdir(parents=True, exist_ok=True)
        (path / "checkpoints").mkdir(exist_ok=not new)
    except FileExistsError:
        raise InputError(f"--out {path}: another run has just begun there; name another folder") from None
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}; name another place") from None
    for entry in path.iterdir():
        if _TEMPORARY.fullmatch(entry.name):
            entry.unlink()
    return RunFolder(path)


def predictions_table(
    *,
    ids: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[str],
    probabilities: Any,
    classes: Sequence[str],
) -> "pa.Table":
    """Columns id, path, label, predicted, probabilities (float64, in class order, which the schema names)."""
    import pyarrow as pa

    from headstart.arrow import lists, strings

    matrix = np.asarray(probabilities, dtype=np.float64)
    table = pa.Table.from_arrays(
        [
            strings(ids),
            strings(paths),
            strings(labels),
            strings([classes[code] for code in matrix.argmax(axis=1)]),
            lists(matrix),
        ],
        names=["id", "path", "label", "predicted", "probabilities"],
    )
    return table.replace_schema_metadata({"classes": json.dumps(list(classes), ensure_ascii=False)})
