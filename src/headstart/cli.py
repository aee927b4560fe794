"""The command line, and the only place that ends the process."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from headstart import prepare_environment
from headstart.errors import InputError, OwnInputError, Stopped, known_failure

if TYPE_CHECKING:
    import argparse

HELP = """\
headstart: from a folder of images to a trained, measured, saved ResNet-18

  headstart train --config frozen_head --data.root DIR   train (headstart train --help lists every key)
  headstart evaluate RUN --data DIR                      measure a finished run on a folder
  headstart predict RUN_OR_MODEL PATHS... [--out FILE]   classify files, folders, globs; csv, jsonl or parquet
  headstart inspect RUN_OR_MODEL [--json]                what is inside a model file
  headstart verify RUN_OR_MODEL                          does this machine compute what the file says it should?
  headstart push RUN REPO_ID [--dry-run]                 to a Hugging Face repository: model, card, report
  headstart compare RUN_A RUN_B [...] [--out PAGE.html]  is one better, and how sure is that
  headstart serve RUN_OR_MODEL                           a page and an HTTP API that classify images, on this machine
  headstart export RUN --format FMT --out P              for another program: timm, transformers, onnx, pt2 and more
  headstart report RUN                                   write report.html and the model card of a run anew
  headstart watch RUN                                    follow a training run from another terminal
  headstart probe DIR                                    what a frozen backbone can do on a folder, in seconds
  headstart data check DIR [--labels] [--out FOLDER]     every fault of a folder: broken files, copies, leaks, labels
  headstart data apply FIXES.csv --data DIR --out NEW    a new folder of links without them
  headstart data demo DIR                                lay out the demo data: 2,624 solar cells
  headstart data bank                                    list the feature bank, or delete from it
  headstart bench features --data DIR                    how fast features are extracted here
  headstart bench data --data DIR                        what holds training up here, and the settings to choose
  headstart doctor                                       what this machine offers, and what is in the way
  headstart doctor parity --config C --data.root DIR     your own run, many ways: does it stay the same run?

The same on several processes: torchrun --nproc_per_node N -m headstart train ..., accelerate launch -m headstart
train ..., or ./launch.sh. Exit codes: 0 done, 2 wrong input, 1 a bug of ours, 143 stopped by a signal after saving."""

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "inspect",
    "verify",
    "push",
    "compare",
    "probe",
    "data",
    "bench",
    "doctor",
    "serve",
    "export",
    "report",
    "watch",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    sys.exit(_exit_code(sys.argv[1:] if argv is None else list(argv)))


def _exit_code(argv: list[str]) -> int:
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(HELP)
            return 0
        if argv[0] == "--version":
            from importlib.metadata import version

            print("headstart", version("headstart"))
            return 0
        command = _command(argv[0])
        if argv[0] == "push":  # the one command that asks for the network, unless the user has forbidden it
            os.environ.setdefault("HF_HUB_OFFLINE", "0")
        prepare_environment()
        # numpy's matrices here are small or are shared out by ourselves; its own threads would wait for each other
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        command(argv[1:])
        return 0
    except InputError as error:
        if _speaks() or isinstance(error, OwnInputError):
            print(f"headstart: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        if _speaks():
            print(f"headstart: {stop}", file=sys.stderr)
        return 143
    except SystemExit as end:  # --help of a command, or argparse
        return int(end.code or 0)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if hasattr(
            signal, "SIGCHLD"
        ):  # torch raises in this signal's handler when a worker has died: not while we speak
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if known := known_failure(error, command=argv[0]):
            print(f"headstart: {known}", file=sys.stderr)
            return 1
        traceback.print_exc()
        print("headstart: this is a bug of ours; please report it with the lines above", file=sys.stderr)
        return 1


def _speaks() -> bool:
    """The same mistake is found by every process; one of them says so."""
    return os.environ.get("RANK", "0") == "0"


def _command(name: str) -> Callable[[list[str]], None]:
    match name:
        case "train":
            return _train
        case "evaluate":
            return _evaluate
        case "predict":
            return _predict
        case "inspect":
            return _inspect
        case "verify":
            return _verify
        case "push":
            return _push
        case "compare":
            return _compare
        case "export":
            return _export
        case "report":
            return _report
        case "watch":
            return _watch
        case "probe":
            return _probe
        case "data":
            return _data
        case "bench":
            return _bench
        case "doctor":
            return _doctor
        case "serve":
            return _serve
        case _:
            from headstart.parsing import nearest

            raise InputError(f"unknown command {name}{nearest(name, COMMANDS) or '; see headstart --help'}")


def _train(argv: list[str]) -> None:
    from headstart.parsing import parse_train

    config = parse_train(argv)
    from headstart.start import run

    run(config)


def _evaluate(argv: list[str]) -> None:
    from headstart import data_cli

    parser = _parser("evaluate", "Measure a finished run on images with classes, each image once.")
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument(
        "--data", required=True, help="any source of train; its val if it has one, else test, else all of it"
    )
    parser.add_argument("--split", help="measure on this split instead, such as test")
    data_cli.add_columns(parser, default="that of the run")
    parser.add_argument("--out", help="write the measurements to this .json file as well")
    parser.add_argument("--on_bad_file", choices=["refuse", "skip"], default="refuse", help="default: refuse")
    args = parser.parse_args(argv)
    from headstart.evaluate import evaluate_command

    evaluate_command(
        args.run,
        data=args.data,
        out=args.out,
        on_bad_file=args.on_bad_file,
        split=args.split,
        columns=data_cli.columns_of(args),
    )


def _predict(argv: list[str]) -> None:
    parser = _parser(
        "predict",
        "Classify images with a finished run. Images that cannot be read are rows with an error; exit code 0.",
    )
    from headstart import predict_cli

    predict_cli.add_arguments(parser)
    predict_cli.predict_command(parser.parse_args(argv))


def _inspect(argv: list[str]) -> None:
    parser = _parser("inspect", "What is inside a model file: its header, without loading tensors.")
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    args = parser.parse_args(argv)
    from headstart.header import inspect_command

    inspect_command(args.run, as_json=args.json)


def _verify(argv: list[str]) -> None:
    parser = _parser(
        "verify",
        "Draw the golden inputs of a model file again and compare what this machine makes of them, in fp32 and as it was measured. "
        "Exit code 1 if a difference exceeds its tolerance.",
    )
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument("--precision", help="only this one: measured, fp32, bf16, fp16 or auto")
    parser.add_argument("--device", help="default: the GPU if there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(argv)
    from headstart.verify import verify_command

    if not verify_command(args.run, device=args.device, precision=args.precision, as_json=args.json):
        sys.exit(1)


def _push(argv: list[str]) -> None:
    parser = _parser(
        "push",
        "Send a finished run to a Hugging Face repository: model file, model card, report. No images, no checkpoints.",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("repo", metavar="REPO_ID", help="such as your-name/ants-and-bees; made if it is not there")
    parser.add_argument("--private", action="store_true", help="if it is made, for you alone")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be sent; sends nothing, needs no network"
    )
    parser.add_argument(
        "--with_pictures", action="store_true", help="send report.html also if it holds images of the data"
    )
    args = parser.parse_args(argv)
    from headstart.push import push_command

    push_command(args.run, args.repo, private=args.private, dry_run=args.dry_run, with_pictures=args.with_pictures)


def _compare(argv: list[str]) -> None:
    parser = _parser("compare", "Finished runs on the same validation images: each of the others against the first.")
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--out", help="write a page (.html) with the images they disagree on")
    parser.add_argument("--common", action="store_true", help="leave out the images that not all runs were measured on")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    args = parser.parse_args(argv)
    from headstart.compare import compare_command

    compare_command(args.runs, common=args.common, out=args.out, as_json=args.json)


def _export(argv: list[str]) -> None:
    parser = _parser(
        "export",
        "Write a finished model for another program. It is tried there on images of odd sizes and modes, and on the run's own "
        "validation images, and kept only if it answers as headstart predict does. Exit code 1 if it does not.",
    )
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument(
        "--format",
        required=True,
        help="torchvision, transformers, timm, onnx, onnx-uint8 (from the image to the probabilities), int8, pt2 or openvino",
    )
    parser.add_argument("--out", required=True, help="file or folder to create")
    parser.add_argument("--data", help="where the images of the run lie now (default: where they lay)")
    parser.add_argument(
        "--images", type=int, default=1000, help="validation images that are compared at most (default: 1000)"
    )
    parser.add_argument(
        "--allow_loss", type=float, metavar="SHARE", help="int8: accuracy that may be lost (default: 0.02, two points)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    args = parser.parse_args(argv)
    if args.images < 1:
        raise InputError(f"--images is {args.images}; it must be at least 1")
    if args.allow_loss is not None and not 0 <= args.allow_loss <= 1:
        raise InputError(f"--allow_loss is {args.allow_loss}; it must lie between 0 and 1")
    from headstart.export.command import Refused, export_command

    try:
        export_command(
            args.run,
            format=args.format,
            out=args.out,
            data=args.data,
            overwrite=args.overwrite,
            largest_loss=args.allow_loss,
            at_most=args.images,
        )
    except Refused as refusal:
        print(f"headstart: {args.format} is not written: {refusal}", file=sys.stderr)
        sys.exit(1)


def _report(argv: list[str]) -> None:
    parser = _parser("report", "Write report.html and README.md of a finished run anew, from its folder.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--data", help="where the images are now; default: where the run found them")
    parser.add_argument("--doctor", help="folder that headstart data check --out wrote; default: RUN, if it holds one")
    args = parser.parse_args(argv)
    from headstart.report.command import report_command

    report_command(args.run, data=args.data, doctor=args.doctor)


def _watch(argv: list[str]) -> None:
    parser = _parser("watch", "Follow a training run from another terminal, until it ends.")
    parser.add_argument("run", help="run folder; it may not be there yet")
    parser.add_argument("--once", action="store_true", help="say where the run is, and end")
    args = parser.parse_args(argv)
    from headstart.watch import watch_command

    watch_command(args.run, once=args.once)


def _probe(argv: list[str]) -> None:
    from headstart import data_cli

    parser = _parser("probe", "What a frozen backbone can do on a folder: cross-validated accuracy, learning curve.")
    parser.add_argument("dir", help="image folder or another source; all its images are used, train and val alike")
    data_cli.add_columns(parser, default="found by name")
    parser.add_argument("--weights", default="imagenet", help="as --model.weights of train (default: imagenet)")
    parser.add_argument("--image_size", type=int, default=224, help="px (default: 224)")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation (default: 5)")
    parser.add_argument("--repeats", type=int, default=5, help="of it, each with other folds (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the folds (default: 0)")
    parser.add_argument("--bank", help="folder of the feature bank; default: in the user's cache folder")
    parser.add_argument("--on_bad_file", choices=["refuse", "skip"], default="refuse", help="default: refuse")
    parser.add_argument("--out", help="write what was found to this .json file as well")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise InputError(f"--repeats is {args.repeats}; it must be at least 1")
    from headstart.config import DataConfig, ModelConfig, ProbeConfig, RunConfig, RuntimeConfig, StrategyConfig

    config = RunConfig(
        seed=args.seed,
        data=DataConfig(
            root=args.dir,
            split="stratified",  # which is which is of no account here, so one part alone will do
            image_size=args.image_size,
            on_bad_file=args.on_bad_file,
            **data_cli.columns_of(args),
        ),
        model=ModelConfig(weights=args.weights),
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(folds=args.folds),
        runtime=RuntimeConfig(bank=args.bank or ""),
    )
    from headstart.studies import probe_command

    probe_command(config, repeats=args.repeats, out=args.out)


def _data(argv: list[str]) -> None:
    parser = _parser("data", "Data sets and the feature bank.")
    what = parser.add_subparsers(dest="what", required=True, metavar="check | apply | demo | bank")
    from headstart import data_cli

    data_cli.add_parsers(what)
    demo = what.add_parser("demo", help="lay out the solar cells of elpv-dataset as an image folder")
    demo.add_argument("dir", help="folder to create")
    demo.add_argument("--seed", type=int, default=0, help="of the 75/25 split (default: 0)")
    bank = what.add_parser("bank", help="list the feature bank, or delete from it")
    bank.add_argument("--bank", help="its folder; default: in the user's cache folder")
    bank.add_argument("--prune", metavar="KEY", help="delete the keys whose name begins so; all: every one")
    bank.add_argument("--prune_unused", metavar="DAYS", type=float, help="delete the keys not used for so many days")
    args = parser.parse_args(argv)
    match args.what:
        case "check":
            data_cli.check(args)
        case "apply":
            data_cli.apply(args)
        case "bank":
            _bank(args.bank, prune_name=args.prune, unused_days=args.prune_unused)
        case "demo":
            _demo(args.dir, seed=args.seed)


def _demo(location: str, *, seed: int) -> None:
    from pathlib import Path

    from headstart.data.demo import write_solar_cells

    counts = write_solar_cells(Path(location), seed=seed)
    print(f"{location}: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))


def _bank(location: str | None, *, prune_name: str | None, unused_days: float | None) -> None:
    import time
    from pathlib import Path

    from headstart.features import default_location, prune, stored

    folder = Path(location) if location else default_location()
    if prune_name is not None or unused_days is not None:
        gone = prune(folder, name=prune_name, unused_days=unused_days)
        print(f"{folder}: {len(gone)} deleted, {sum(entry.num_bytes for entry in gone) / 2**20:.1f} MiB")
        return
    entries = stored(folder)
    print(f"{folder}: {len(entries)} keys, {sum(entry.num_bytes for entry in entries) / 2**20:.1f} MiB")
    for entry in entries:
        spec = entry.key.get("preprocess", {})
        days = (time.time() - entry.used) / 86400
        print(
            f"{entry.name}  {entry.num_bytes / 2**20:8.1f} MiB  {entry.num_shards:4d} shards  used {days:.1f} days ago  "
            f"{entry.key.get('form', '?')}, {spec.get('image_size', '?')} px of {spec.get('resize_size', '?')}, "
            f"weights {str(entry.key.get('weights_sha256', '?'))[:8]}"
        )


def _bench(argv: list[str]) -> None:
    parser = _parser("bench", "How fast this machine is.")
    what = parser.add_subparsers(dest="what", required=True, metavar="features | data")
    features = what.add_parser("features", help="extraction beside the same trunk on images already in memory")
    features.add_argument("--data", required=True, help="image folder")
    features.add_argument("--weights", default="bundled", help="as --model.weights of train (default: bundled)")
    features.add_argument(
        "--mixed_precision", choices=["no", "bf16", "fp16", "auto"], default="auto", help="default: auto"
    )
    data = what.add_parser(
        "data", help="the stages of the input, and the real run beside the step on tensors in memory"
    )
    data.add_argument("--data", required=True, help="image folder")
    data.add_argument("--weights", default="bundled", help="as --model.weights of train (default: bundled)")
    data.add_argument("--image_size", type=int, default=224, help="px (default: 224)")
    data.add_argument("--batch_size", type=int, default=32, help="default: 32")
    data.add_argument("--mixed_precision", choices=["no", "bf16", "fp16", "auto"], default="auto", help="default: auto")
    data.add_argument("--threads", type=int, help="of torch; default: the usable cores")
    data.add_argument("--steps", type=int, default=8, help="of each measurement (default: 8)")
    for command in (features, data):
        command.add_argument("--rounds", type=int, default=3, help="default: 3")
    args = parser.parse_args(argv)
    for name in ("rounds", "steps"):
        if getattr(args, name, 1) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.what == "data":
        _bench_data(args)
        return
    from headstart.bench import bench_features

    bench_features(args.data, weights_source=args.weights, precision=args.mixed_precision, rounds=args.rounds)


def _bench_data(args: "argparse.Namespace") -> None:
    from headstart.config import DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig

    config = RunConfig(
        data=DataConfig(root=args.data, image_size=args.image_size),
        model=ModelConfig(weights=args.weights),
        train=TrainConfig(batch_size=args.batch_size, checkpoint_minutes=0),
        runtime=RuntimeConfig(mixed_precision=args.mixed_precision, threads=args.threads),
    )
    from headstart.bench_data import bench_data

    bench_data(config, rounds=args.rounds, steps=args.steps)


def _doctor(argv: list[str]) -> None:
    import json

    if argv[:1] == ["parity"]:
        _parity(argv[1:])
        return
    parser = _parser("doctor", "What this machine offers; headstart doctor parity --help for the other examination.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(argv)
    from headstart.doctor import examine, warnings_of

    found = examine()
    if args.json:
        print(json.dumps({**found, "warnings": warnings_of(found)}, indent=2))
        return
    for name, value in found.items():
        text = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else value
        print(f"{name}: {', '.join(text) or 'none' if isinstance(text, list) else text}")
    for sentence in warnings_of(found) or ["nothing is in the way"]:
        print(f"- {sentence}")


def _serve(argv: list[str]) -> None:
    parser = _parser("serve", "Answer with a finished run: a page to drop images on, and an HTTP API.")
    from headstart.serve import options

    options.add_options(parser)
    options.run(parser.parse_args(argv))


def _parity(argv: list[str]) -> None:
    parser = _parser(
        "doctor parity",
        "Run a few steps of a configuration on 1 process and on several, with and without workers, interrupted, in bf16, "
        "and compare. Every other option is one of headstart train. Exit code 1 if a difference exceeds its tolerance.",
    )
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each run (default: 10)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="default: 0 2")
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=["fine_tune", "frozen_head"],
        help="examine each of these, a frozen head with its features recomputed (default: what the configuration says)",
    )
    args, rest = parser.parse_known_args(argv)
    if args.steps < 5 or min(args.processes) < 1 or min(args.workers) < 0:
        raise InputError("--steps must be at least 5, --processes at least 1, --workers at least 0")
    from dataclasses import replace

    from rich.console import Console

    from headstart.parity import check_parity, table_of
    from headstart.parsing import parse_train

    checks = []
    for strategy in args.strategies or [""]:
        chosen = ["--strategy.name", strategy, "--strategy.features", "recompute"] if strategy else []
        config = parse_train([*rest, *chosen])
        found = check_parity(config, steps=args.steps, processes=args.processes, workers=args.workers)
        checks += [replace(check, name=f"{strategy} {check.name}".lstrip()) for check in found]
    Console(width=None if sys.stdout.isatty() else 130).print(table_of(checks))
    if not all(check.passed for check in checks):
        sys.exit(1)


def _parser(command: str, description: str):  # type: ignore[no-untyped-def]
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            raise InputError(f"{message}; see headstart {command} --help")

    return Parser(prog=f"headstart {command}", description=description, allow_abbrev=False)
