"""`headstart predict`: the images that were named, through the model, to a table on the screen, a file, or a folder of parts."""

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import InputError, Stopped
from headstart.files import check_out
from headstart.model.conformal import CONFIDENCE
from headstart.model.open_set import WRONGLY_FLAGGED

if TYPE_CHECKING:
    from headstart.predict.image_paths import Listed
    from headstart.predict.output_table import Columns
    from headstart.predict.parts import Job
    from headstart.predict.predictor import Predictor, Question
    from headstart.predict.stream import Computed
    from headstart.runtime.signals import StopRequest

OUT_TYPES = (".csv", ".jsonl", ".parquet")
SHOWN = 40  # rows on the screen
PROGRESS_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument(
        "paths",
        nargs="+",
        help="image files, folders, quoted globs, .csv or .txt lists of paths, or - for standard input",
    )
    parser.add_argument("--out", help="write a table: .csv, .jsonl or .parquet; or FOLDER/ for parquet parts that a second "
                        "start continues and several processes share")  # fmt: skip
    parser.add_argument("--top", type=int, help="a column with the K most probable classes")
    parser.add_argument("--no_probabilities", action="store_true", help="no column for each class")
    parser.add_argument(
        "--embeddings", action="store_true", help="a column with the 512 features (.jsonl, .parquet, FOLDER/)"
    )
    parser.add_argument("--uncalibrated", action="store_true", help="leave out the temperature of the model file")
    parser.add_argument(
        "--confidence", type=float, default=CONFIDENCE, help=f"of the prediction sets (default: {CONFIDENCE})"
    )
    parser.add_argument("--wrongly_flagged", type=float, default=WRONGLY_FLAGGED,
                        help=f"share of known images that may be called none of these (default: {WRONGLY_FLAGGED})")  # fmt: skip
    parser.add_argument(
        "--precision", default="measured", help="measured (as the model was, the default), fp32, bf16, fp16, auto"
    )
    parser.add_argument("--device", help="default: the GPU if there is one, else cpu")
    parser.add_argument("--batch_size", type=int, help="images per forward pass (default: 16 on a CPU, 256 on a GPU)")
    parser.add_argument(
        "--num_workers", type=int, help="processes that decode, and on a CPU compute (default: one per core)"
    )
    parser.add_argument("--part_rows", type=int, default=4096, help="images of one part of FOLDER/ (default: 4096)")
    parser.add_argument("--image_column", help="of .csv lists (default: found by its name)")


def predict_command(args: argparse.Namespace) -> None:
    """Raises InputError, and Stopped after a signal; images that cannot be read are rows with an error, whatever their number."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    parts = args.out is not None and (args.out.endswith(("/", os.sep)) or Path(args.out).is_dir())
    _check(args, several=several, parts=parts)
    left_out: Counter[str] = Counter()
    images = None if several else _images(args, left_out)  # several processes: one of them looks, below
    from headstart.predict.predictor import Predictor, Question
    from headstart.runtime.accelerator import set_threads
    from headstart.runtime.signals import StopRequest

    set_threads(None)
    with StopRequest() as stop:
        accelerator = None
        if several:
            from headstart.config import RuntimeConfig
            from headstart.runtime.accelerator import start_accelerator

            accelerator = start_accelerator(RuntimeConfig(mixed_precision="no", cpu=args.device == "cpu"))
        device = args.device if accelerator is None else accelerator.device
        predictor = Predictor(args.run, device=device, precision=args.precision)
        question = Question(
            top=args.top or 1,
            embeddings=args.embeddings,
            calibrated=not args.uncalibrated,
            confidence=args.confidence,
            wrongly_flagged=args.wrongly_flagged,
        )
        predictor.check(question)
        if parts:
            _to_parts(args, accelerator, predictor, question, images, stop, left_out)
        else:
            assert images is not None
            _to_file_or_screen(args, predictor, question, images, stop)
    if left_out:
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in left_out.most_common(5))
        print(
            f"{left_out.total():,} files left out that are no images by their names ({kinds}{', ...' if len(left_out) > 5 else ''})"
        )


def _check(args: argparse.Namespace, *, several: bool, parts: bool) -> None:
    for name, least in (("top", 1), ("batch_size", 1), ("num_workers", 0), ("part_rows", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} is {value}; it must be at least {least}")
    if several and not parts:
        raise InputError("several processes need a folder to write their parts in; name it with --out FOLDER/")
    if args.out is None or parts:
        return
    for written in (Path(args.out), _incomplete(Path(args.out))):
        for path in args.paths:
            if written.exists() and os.path.exists(path) and written.samefile(path):
                raise InputError(f"--out {args.out} would replace {path}, which names the images; name another file")
    suffix = Path(args.out).suffix
    if suffix not in OUT_TYPES:
        raise InputError(
            f"--out {args.out}: unknown type {suffix or '(none)'}; use one of {', '.join(OUT_TYPES)}, or FOLDER/ for parts"
        )
    if args.embeddings and suffix == ".csv":
        raise InputError("--embeddings do not fit into a .csv; use .parquet, .jsonl or FOLDER/")
    check_out(args.out)


def _images(args: argparse.Namespace, left_out: "Counter[str]") -> "Iterator[Listed]":
    """The first is looked for now, so that a pattern without images is refused before anything is written."""
    from headstart.predict.image_paths import images

    found = images(args.paths, column=args.image_column, left_out=left_out)
    first = next(found, None)
    if first is None:
        raise InputError(f"{' '.join(args.paths)}: no image there")
    return chain([first], found)


def _columns(args: argparse.Namespace, predictor: "Predictor", question: "Question") -> "Columns":
    from headstart.predict.output_table import Columns

    return Columns(predictor, question, top=args.top is not None, probabilities=not args.no_probabilities)


def _counted(computed: "Iterable[Computed]", told: "_Told") -> "Iterator[Computed]":
    for batch in computed:
        told.add(len(batch.images))
        yield batch


def _how(args: argparse.Namespace, stop: "StopRequest") -> dict[str, Any]:
    """Arguments of `stream` and `stream_repeatably`."""
    return {
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "stopped": lambda: stop.signal_name is not None,
    }


def _to_file_or_screen(
    args: argparse.Namespace,
    predictor: "Predictor",
    question: "Question",
    images: "Iterator[Listed]",
    stop: "StopRequest",
) -> None:
    from headstart.predict.stream import stream

    told, counts = _Told(None), Counter[str | None]()
    shown: list[dict[str, Any]] = []
    columns = _columns(args, predictor, question)

    def run(file: Any = None) -> None:
        for computed in _counted(stream(predictor, images, **_how(args, stop)), told):
            rows = columns.rows(computed)
            counts.update(rows.column("predicted").to_pylist())
            if len(shown) < SHOWN:
                shown.extend(
                    rows.slice(0, SHOWN - len(shown)).select(["path", "predicted", "probability", "error"]).to_pylist()
                )
            if file is not None:
                file.write(rows)

    if args.out is None:
        run()
    else:
        _write(Path(args.out), columns, run, stop)
    if args.out is None or counts.total() <= SHOWN:
        _print(shown, counts.total())
    if stop.signal_name is not None:
        where = f"; they are in {_incomplete(Path(args.out))}" if args.out else ""
        raise Stopped(f"stopped by {stop.signal_name} after {counts.total():,} images{where}")
    _conclude(counts.total(), counts.pop(None, 0), counts, told, args.out)


def _write(out: Path, columns: "Columns", run: Any, stop: "StopRequest") -> None:
    """Under a name of its own until it is complete; what a signal cut short keeps that name."""
    from headstart.files import write_atomically
    from headstart.predict.output_table import TableFile

    def write(staging: Path) -> None:
        file = TableFile(staging, columns.schema, suffix=out.suffix)
        run(file)
        file.close()

    write_atomically(_incomplete(out), write)
    if stop.signal_name is None:
        os.replace(_incomplete(out), out)


def _incomplete(out: Path) -> Path:
    return out.with_suffix(f".incomplete{out.suffix}")


def _to_parts(
    args: argparse.Namespace,
    accelerator: Any,
    predictor: "Predictor",
    question: "Question",
    images: "Iterator[Listed] | None",
    stop: "StopRequest",
    left_out: "Counter[str]",
) -> None:
    from headstart.predict.parts import begin_or_continue
    from headstart.predict.stream import stream_repeatably
    from headstart.runtime.processes import on_main

    folder = Path(args.out)
    columns = _columns(args, predictor, question)
    asked = {
        "model_sha256": _sha256(predictor.path),
        "precision": predictor.precision,
        "device": predictor.device.type,
        "batch_size": args.batch_size,
        "columns": columns.schema.names,
        **asdict(question),
    }

    def begin() -> "Job":
        try:
            return begin_or_continue(folder, images or _images(args, left_out), asked, block_rows=args.part_rows)
        except OSError as error:
            raise InputError(f"--out {folder}: {error.strerror}; name another place") from None

    job = begin() if accelerator is None else on_main(accelerator, begin)
    rank, num_processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    ranges = job.missing(process=rank, num_processes=num_processes)
    wanted = sum(end - start for start, end in ranges)
    told = _Told(wanted)
    if rank == 0:
        here = f", {wanted:,} of them for this process" if num_processes > 1 else f", {wanted:,} of them still to do"
        print(f"{folder}: {job.num_images:,} images{here}", flush=True)
    computed = stream_repeatably(predictor, job.images(ranges), **_how(args, stop))
    _fill_parts(job, ranges, columns, _counted(computed, told))
    if stop.signal_name is not None:
        raise Stopped(f"stopped by {stop.signal_name}; what is done is in {folder}, and the same command continues")
    summary = job.finish()
    if summary is not None:
        _conclude(summary["images"], summary["unreadable"], summary["predicted"], told, args.out)
    elif rank == 0:
        print(f"process {rank} is done; others are still at work, or the same command makes what they left")


def _fill_parts(job: "Job", ranges: list[tuple[int, int]], columns: "Columns", computed: "Iterator[Computed]") -> None:
    """One part for each range, which begins and ends with a batch; what a signal leaves of the last one is a part, too."""
    for start, end in ranges:
        rows, at = [], start
        while at < end and (batch := next(computed, None)) is not None:
            rows.append(columns.rows(batch))
            at += len(rows[-1])
        if rows:
            job.write_part(start, rows, columns.schema)


class _Told:
    """Says every PROGRESS_S how far it is."""

    def __init__(self, wanted: int | None) -> None:
        self.count, self._wanted = 0, wanted
        self._started = self._last = time.perf_counter()

    def add(self, count: int) -> None:
        self.count += count
        now = time.perf_counter()
        if now - self._last >= PROGRESS_S and os.environ.get("RANK", "0") == "0":
            self._last = now
            of = "" if self._wanted is None else f" of {self._wanted:,}"
            print(f"{self.count:,}{of} images, {self.rate:.0f} img/s", file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        return self.count / max(time.perf_counter() - self._started, 1e-9)


def _print(rows: list[dict[str, Any]], total: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    table = Table("image", "predicted", "probability")
    for row in rows:
        if row["error"] is not None:
            table.add_row(row["path"], "", f"unreadable: {row['error']}")
        else:
            table.add_row(row["path"], row["predicted"], f"{row['probability']:.3f}")
    console.print(table)
    if total > len(rows):
        console.print(f"and {total - len(rows):,} more; --out FILE writes all of them", highlight=False)


def _conclude(
    images: int, unread: int, counts: "Counter[str | None] | dict[str, int]", told: _Told, out: str | None
) -> None:
    if unread:
        print(f"{unread:,} of {images:,} could not be read")
    if out is not None:
        names = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])[:10])
        rate = f"; {told.count:,} just now, {told.rate:.0f} img/s" if told.count else ""
        print(f"{out}: {images:,} images ({names}){rate}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
