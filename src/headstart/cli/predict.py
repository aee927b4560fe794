"""`headstart predict`: the options, the checks before the work, and what is printed after it."""

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.options import (
    EXCEL,
    Parser,
    add_device,
    add_model,
    add_number,
    add_precision,
    check_at_least,
    check_model_of,
    command_parser,
)
from headstart.cli.print_predictions import print_predictions
from headstart.errors import InputError, Stopped
from headstart.files import check_links, check_local, check_out, check_outside, incomplete, sha256_of
from headstart.launcher import num_processes
from headstart.wording import command_line, plural

if TYPE_CHECKING:
    from headstart.predict.bulk import BulkPrediction
    from headstart.predict.image_paths import Listed
    from headstart.predict.kept_columns import KeptColumns
    from headstart.predict.parts_folder import PartsFolder

OUT_TYPES = (".csv", ".jsonl", ".parquet")


def predict(argv: list[str]) -> None:
    """Raises InputError, and Stopped after a signal. Unreadable images, however many, are rows with an error."""
    args = predict_parser().parse_args(argv)
    several = num_processes() > 1
    parts = args.out is not None and (args.out.endswith(("/", os.sep)) or os.path.isdir(args.out))
    _check(args, several=several, parts=parts)
    _check_order(args)
    check_model_of(args.run)
    skipped: Counter[str] = Counter()
    kept = _kept_columns(args)
    images = None if several else _images(args, kept, skipped)  # several processes: only the main one lists them, below
    from headstart.config import RuntimeConfig
    from headstart.data.folder_walk import PASSED_OVER
    from headstart.predict.bulk import BulkPrediction
    from headstart.predict.output_table import Columns
    from headstart.predict.predictor import PredictionOptions, Predictor
    from headstart.runtime.accelerator import set_threads, start_accelerator
    from headstart.runtime.signals import StopRequest

    set_threads(None)
    with StopRequest("the batches in progress are finished") as stop:
        accelerator = None
        if several:
            accelerator = start_accelerator(RuntimeConfig(mixed_precision="no", cpu=args.device == "cpu"))
        device = args.device if accelerator is None else accelerator.device
        predictor = Predictor(args.run, device=device, precision=args.precision)
        options = PredictionOptions(
            top=args.top or 1,
            embeddings=args.embeddings,
            calibrated=not args.uncalibrated,
            confidence=args.confidence,
            wrongly_flagged=args.wrongly_flagged,
        )
        predictor.check(options)
        columns = Columns(
            predictor, options, top=args.top is not None, probabilities=not args.no_probabilities, kept=kept
        )
        bulk = BulkPrediction(
            columns,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            stop=stop,
            count_images=None if "-" in args.paths else lambda: sum(1 for _ in _images(args, kept, Counter())),
        )
        if parts:
            _to_parts(args, accelerator, bulk, images, skipped)
        else:
            assert images is not None
            _to_file_or_screen(bulk, images, args.out, excel=args.excel)
    for reason in PASSED_OVER & skipped.keys():
        print(f"not searched: {reason}, {plural(skipped.pop(reason), 'time')}")
    if skipped:
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in skipped.most_common(5))
        more = ", ..." if len(skipped) > 5 else ""
        print(f"skipped: {plural(skipped.total(), 'file')} of unsupported types ({kinds}{more})")


def predict_parser() -> Parser:
    from headstart.model.conformal import CONFIDENCE, CONFIDENCES
    from headstart.model.open_set import SHARES, WRONGLY_FLAGGED

    parser = command_parser(
        "predict",
        "Classify images with a finished run. An unreadable image gives a row with an error and does not change the "
        "exit code.",
        "runs/first photo.jpg",
        "runs/first new --out predictions.csv --top 3",
        "runs/first 'archive/**/*.jpg' --out predictions/",
    )
    add_model(parser)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="IMAGES",
        help="Image files, folders, quoted globs, .csv or .txt lists of paths, or - for standard input.",
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="Table to write: a .csv, .jsonl or .parquet file, or FOLDER/ for a folder of parquet files (default: the "
        "terminal). With FOLDER/, several processes can share the work, and the same command resumes after an "
        "interruption.",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Permission to replace the file, or to start FOLDER/ again."
    )
    parser.add_argument(
        "--top", metavar="K", type=int, help="Additional column with the K most probable classes (default: none)."
    )
    parser.add_argument("--excel", action="store_true", help=f".csv file for spreadsheet programs: {EXCEL}.")
    columns = parser.add_argument_group("Columns")
    columns.add_argument(
        "--keep_columns",
        metavar="NAMES",
        help="Columns of the list to carry along, separated by commas, or all (default: none).",
    )
    columns.add_argument("--no_probabilities", action="store_true", help="Table without the probability of each class.")
    columns.add_argument(
        "--embeddings", action="store_true", help="Additional column with the features (.jsonl, .parquet, FOLDER/)."
    )
    columns.add_argument(
        "--uncalibrated", action="store_true", help="Plain softmax probabilities, without calibration."
    )
    add_number(
        columns,
        "--confidence",
        CONFIDENCE,
        "Probability with which the prediction set (the possible classes) contains the true class: "
        + ", ".join(map(str, CONFIDENCES)),
        metavar="SHARE",
    )
    add_number(
        columns,
        "--wrongly_flagged",
        WRONGLY_FLAGGED,
        "Share of the images of known classes that may be wrongly flagged as none of these classes: "
        + ", ".join(map(str, SHARES)),
        metavar="SHARE",
    )
    parser.add_argument_group("Input").add_argument(
        "--image_column", metavar="NAME", help="Column with the paths in a table (default: found by name)."
    )
    speed = parser.add_argument_group("Speed")
    add_precision(speed, "Precision", default="measured")
    add_device(speed)
    speed.add_argument(
        "--batch_size", type=int, metavar="N", help="Images per forward pass (default: 16 on a CPU, 256 on a GPU)."
    )
    speed.add_argument(
        "--num_workers",
        type=int,
        metavar="N",
        help="Processes that decode images and, on a CPU, also compute (default: one per core).",
    )
    add_number(speed, "--part_rows", 4096, "Images per file of FOLDER/")
    return parser


def _check(args: Namespace, *, several: bool, parts: bool) -> None:
    check_at_least(args, top=1, batch_size=1, num_workers=0, part_rows=1)
    if several and not parts:
        raise InputError("several processes need a folder to write their parts to; name it with --out FOLDER/")
    if args.excel and (parts or Path(args.out or "").suffix != ".csv"):
        if args.out is None:
            raise InputError("--excel changes only .csv files; add --out FILE.csv")
        raise InputError(f"--excel changes only .csv files, and --out is {args.out}; name a .csv file, or omit --excel")
    if args.out is not None and parts:
        check_local(args.out)
        check_links(args.out)
        for path in args.paths:
            check_outside(args.out, path)
    if args.out is None or parts:
        return
    for written in (Path(args.out), incomplete(Path(args.out))):
        for path in args.paths:
            if os.path.exists(written) and os.path.exists(path) and written.samefile(path):
                raise InputError(f"--out {args.out} would replace the input {path}; name another file")
    suffix = Path(args.out).suffix
    if suffix not in OUT_TYPES:
        raise InputError(
            f"--out {args.out}: unknown type {suffix or '(none)'}; "
            f"use one of {', '.join(OUT_TYPES)}, or FOLDER/ for parts"
        )
    if args.embeddings and suffix == ".csv":
        raise InputError("--embeddings cannot be written to a .csv; use .parquet, .jsonl or FOLDER/")
    check_out(args.out)
    if Path(args.out).exists() and not args.overwrite:
        raise InputError(f"--out {args.out} already exists; name another file, or add --overwrite")


def _check_order(args: Namespace) -> None:
    """Raise InputError if the run is named after the images."""
    last = args.paths[-1]
    model, other = (os.path.join(path, "model.safetensors") for path in (args.run, last))
    if os.path.isfile(other) and not os.path.isfile(model):  # Path.is_file raises without permission
        swapped = command_line("predict", last, args.run, *args.paths[:-1])
        raise InputError(f"the run comes before the images: {swapped}")


def _kept_columns(args: Namespace) -> "KeptColumns":
    from headstart.predict.kept_columns import KeptColumns

    if args.keep_columns is None:
        return KeptColumns()
    if args.out is None:
        raise InputError("--keep_columns needs a file to write the columns to; add --out FILE or FOLDER/")
    return KeptColumns.of(args.paths, args.keep_columns, image_column=args.image_column)


def _images(args: Namespace, kept: "KeptColumns", skipped: "Counter[str]") -> "Iterator[Listed]":
    """Finds the first image at once, so that a pattern without images is refused before anything is written."""
    from headstart.predict.image_paths import images

    found = images(args.paths, column=args.image_column, kept=kept, left_out=skipped)
    first = next(found, None)
    if first is None:
        raise InputError(f"{' '.join(args.paths)}: no images found; name image files, or folders that contain some")
    return chain([first], found)


def _to_file_or_screen(bulk: "BulkPrediction", images: "Iterator[Listed]", out: str | None, *, excel: bool) -> None:
    bulk.to_file(images, None if out is None else Path(out), excel=excel)
    if out is None or bulk.count <= len(bulk.preview):
        print_predictions(bulk.preview, bulk.columns, total=bulk.count)
    if bulk.stop.signal_name is not None:
        where = f"; they are in {incomplete(Path(out))}" if out else ""
        raise Stopped(f"stopped by {bulk.stop.signal_name} after {plural(bulk.count, 'image')}{where}")
    _conclude(bulk, out, images=bulk.count, unreadable=bulk.counts.pop(None, 0), predicted=bulk.counts)


def _to_parts(
    args: Namespace,
    accelerator: Any,
    bulk: "BulkPrediction",
    images: "Iterator[Listed] | None",
    skipped: "Counter[str]",
) -> None:
    from headstart.predict.parts_folder import begin_or_continue, discard
    from headstart.runtime.processes import on_main

    predictor, kept = bulk.columns.predictor, bulk.columns.kept
    settings = {
        "model_sha256": sha256_of(predictor.path),
        "precision": predictor.precision,
        "device": predictor.device.type,
        "batch_size": args.batch_size,
        "columns": bulk.columns.schema.names,
        **asdict(bulk.columns.options),
    }

    def begin() -> "PartsFolder":
        try:
            listed = images or _images(args, kept, skipped)
            if args.overwrite:
                discard(Path(args.out))
            return begin_or_continue(Path(args.out), listed, settings, block_rows=args.part_rows, kept=kept)
        except OSError as error:
            raise InputError(f"--out {args.out}: {error.strerror}; name another place") from None

    folder = begin() if accelerator is None else on_main(accelerator, begin)
    rank, num_processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    ranges = folder.missing(process=rank, num_processes=num_processes)
    if rank == 0:
        missing = sum(end - start for start, end in ranges)
        which = "for this process" if num_processes > 1 else "still to do"
        print(f"{folder.folder}: {plural(folder.num_images, 'image')}, {missing:,} of them {which}", flush=True)
    bulk.to_parts(folder, ranges)
    if bulk.stop.signal_name is not None:
        raise Stopped(
            f"stopped by {bulk.stop.signal_name}; the finished rows are in {folder.folder}, "
            "and the same command continues"
        )
    summary = folder.finish()
    if summary is not None:
        _conclude(bulk, args.out, **summary)
    elif rank == 0:
        print(f"process {rank} is done; others are still running, or the same command predicts what they left")


def _conclude(
    bulk: "BulkPrediction", out: str | None, *, images: int, unreadable: int, predicted: Mapping[Any, int]
) -> None:
    """images, unreadable, predicted: of all that `out` holds, not only of this start."""
    if unreadable:
        print(f"{unreadable:,} of {images:,} could not be read")
    if out is not None:
        largest = sorted(predicted.items(), key=lambda item: -item[1])[:10]
        names = ", ".join(f"{count:,} {name}" for name, count in largest)
        rate = f"; {bulk.count:,} by this command, {bulk.rate:.0f} img/s" if bulk.count else ""
        print(f"{out}: {plural(images, 'image')} ({names}){rate}")
