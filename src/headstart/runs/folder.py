"""The run folder: its files, written atomically, and the checks before a run begins in it."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import InputError
from headstart.files import check_links, check_local, check_outside, fsync, lies_inside, write_atomically, write_text
from headstart.runs.lock import RUNNING, is_finished, resume_command, writer_of

if TYPE_CHECKING:  # only tables need pyarrow, so it is imported only in functions
    import pyarrow as pa


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # as named by write_atomically


class RunFolder:
    """The files of one run. Only the main process writes. on_line: called with every line of metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_line: Callable[[Mapping[str, Any]], None] | None = None

    @property
    def model_file(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def write_text(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    def write_table(self, name: str, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        write_atomically(self.path / name, lambda path: pq.write_table(table, path))

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl. A line that a crash truncated is removed when the run is resumed."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self.on_line is not None:
            self.on_line(line)

    def fsync_metrics(self) -> None:
        """Make the lines so far survive a power failure."""
        if (self.path / "metrics.jsonl").exists():
            fsync(self.path / "metrics.jsonl")

    def discard_metrics_after(self, step: int, *, epoch: int) -> None:
        """Remove the lines of the steps and epochs that a resumed run repeats, and an incomplete last line.

        epoch: the last evaluated epoch that is kept."""
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


def choose_folder(out: str, *, strategy: str, root: str) -> Path:
    """`out`, or the first free runs/<strategy>-<number>. root: the images; if the working folder lies inside them, runs
    lies beside them."""
    check_local(out)  # as text: Path makes s3:/bucket of s3://bucket
    runs = Path("runs")
    if lies_inside(runs, root):
        runs = Path(os.path.realpath(root)).parent / runs
    numbered = (runs / f"{strategy}-{number:03d}" for number in count(1))
    return Path(out) if out else next(path for path in numbered if not path.exists())


def describe_place(out: str, path: Path) -> str:
    """One line if `choose_folder` has not chosen the usual place, else ""."""
    is_usual = bool(out) or path.parent == Path("runs")
    return "" if is_usual else f"run folder: {path}, because the working folder lies inside the images"


def check_new_folder(path: Path) -> None:
    """Raise InputError unless a run folder can be created there. Creates nothing."""
    check_links(path)
    if path.is_dir() and any(path.iterdir()):
        what, also = "is not empty", ""
        if (path / "config.yaml").exists():
            what = "already contains a run"
            also = "" if is_finished(path) else f", or continue it with: {resume_command(path)}"
        raise InputError(f"--out {path} {what}; name another folder{also}")
    nearest = path.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"--out {path}: {nearest} is a file, so the folder cannot be created; name another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--out {path}: no permission to write in {nearest}; name another folder")


def check_start(path: Path, *, resume: str, root: str) -> None:
    """Raise InputError unless a new run can begin there: the folder lies outside of `root`, the images, and is new or
    empty, or `resume` is auto and it holds only a run that was killed before its first checkpoint."""
    if resume != "auto" or not is_unfinished(path):
        check_new_folder(path)
        check_outside(path, root)
    check_nobody_writes(path)


def named_checkpoint(resume: str) -> Path:
    """The checkpoint that `train.resume` names. Raises InputError if it is none."""
    path = Path(resume)
    if not (path / "state.json").is_file():
        raise InputError(
            f"train.resume {resume} is not a checkpoint; name a folder RUN/checkpoints/step_*, or use auto"
        )
    return path


def check_nobody_writes(path: Path) -> None:
    """Raise InputError if another process of this machine is running a run there."""
    if (process := writer_of(path)) is not None:
        raise InputError(f"--out {path}: process {process} is writing there; wait for it, or name another folder")


def is_unfinished(path: Path) -> bool:
    """Whether the folder holds a run that is not finished, and nothing else."""
    if not path.is_dir() or is_finished(path):
        return False
    names = {entry.name for entry in path.iterdir() if not _TEMPORARY.fullmatch(entry.name)}
    return names <= {"checkpoints", RUNNING} or ("config.yaml" in names and "checkpoints" in names)


def create_folder(path: Path, *, new: bool = False, numbered: bool = False) -> RunFolder:
    """Create the folder, and remove the temporary files that a killed process left in it.

    new: the run is not resumed, so only one of two runs that begin at once may have the folder. numbered:
    `choose_folder` chose `path`, so the next free number is used if another run has taken it.
    Raises InputError with the reason of the system if it cannot be created, or if another run has taken it.
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
        raise InputError(f"--out {path}: another run has just started there; name another folder") from None
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}; name another folder") from None
    for entry in path.iterdir():
        if _TEMPORARY.fullmatch(entry.name):
            entry.unlink()
    return RunFolder(path)


def predictions_table(
    *, ids: Sequence[str], paths: Sequence[str], labels: Sequence[str], probabilities: Any, classes: Sequence[str]
) -> "pa.Table":
    """probabilities: (n, C), in the order of `classes`. Columns: id, path, label, predicted, and probabilities (lists
    of float64); `classes` is in the metadata of the schema."""
    import pyarrow as pa

    from headstart.arrow import lists, strings

    matrix = np.asarray(probabilities, dtype=np.float64)
    predicted = [classes[index] for index in matrix.argmax(axis=1)]
    table = pa.Table.from_arrays(
        [*map(strings, (ids, paths, labels, predicted)), lists(matrix)],
        names=["id", "path", "label", "predicted", "probabilities"],
    )
    return table.replace_schema_metadata({"classes": json.dumps(list(classes), ensure_ascii=False)})
