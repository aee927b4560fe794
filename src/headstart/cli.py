"""The command line: headstart train | evaluate | predict | data. The only place that ends the process."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from headstart import prepare_environment
from headstart.errors import InputError, Stopped

HELP = """\
headstart: from a folder of images to a trained, measured, saved ResNet-18

  headstart train --config frozen_head --data.root DIR   train (headstart train --help lists every key)
  headstart evaluate RUN --data DIR                      measure a finished run on a folder
  headstart predict RUN_OR_MODEL PATHS... [--out FILE]   classify files, folders, globs; csv, jsonl or parquet
  headstart data demo DIR                                lay out the demo data: 2,624 solar cells

The same on several processes: torchrun --nproc_per_node N -m headstart train ..., accelerate launch -m headstart
train ..., or ./launch.sh. Exit codes: 0 done, 2 wrong input, 1 a bug of ours, 143 stopped by a signal after saving."""

COMMANDS = ("train", "evaluate", "predict", "data")


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
        prepare_environment()
        # numpy's matrices here are small or are shared out by ourselves; its own threads would wait for each other
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        command(argv[1:])
        return 0
    except InputError as error:
        if _speaks():
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
    except Exception:
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
        case "data":
            return _data
        case _:
            from headstart.parsing import nearest

            raise InputError(f"unknown command {name}{nearest(name, COMMANDS) or '; see headstart --help'}")


def _train(argv: list[str]) -> None:
    from headstart.parsing import parse_train

    config = parse_train(argv)
    from headstart.start import run

    run(config)


def _evaluate(argv: list[str]) -> None:
    parser = _parser("evaluate", "Measure a finished run on an image folder, each image once.")
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument("--data", required=True, help="image folder; its val/ if it has one, else all of it")
    parser.add_argument("--out", help="write the measurements to this .json file as well")
    parser.add_argument("--on_bad_file", choices=["refuse", "skip"], default="refuse", help="default: refuse")
    args = parser.parse_args(argv)
    from headstart.evaluate import evaluate_command

    evaluate_command(args.run, data=args.data, out=args.out, on_bad_file=args.on_bad_file)


def _predict(argv: list[str]) -> None:
    parser = _parser("predict", "Classify images with a finished run.")
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument("paths", nargs="+", help="image files, folders, quoted globs")
    parser.add_argument("--out", help="write a table: .csv, .jsonl or .parquet")
    parser.add_argument("--batch_size", type=int, default=64, help="images per forward pass (default: 64)")
    args = parser.parse_args(argv)
    from headstart.predict import predict_command

    predict_command(args.run, args.paths, out=args.out, batch_size=args.batch_size)


def _data(argv: list[str]) -> None:
    parser = _parser("data", "Data sets.")
    what = parser.add_subparsers(dest="what", required=True, metavar="demo")
    demo = what.add_parser("demo", help="lay out the solar cells of elpv-dataset as an image folder")
    demo.add_argument("dir", help="folder to create")
    demo.add_argument("--seed", type=int, default=0, help="of the 75/25 split (default: 0)")
    args = parser.parse_args(argv)
    from pathlib import Path

    from headstart.data.demo import write_solar_cells

    counts = write_solar_cells(Path(args.dir), seed=args.seed)
    print(f"{args.dir}: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))


def _parser(command: str, description: str):  # type: ignore[no-untyped-def]
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            raise InputError(f"{message}; see headstart {command} --help")

    return Parser(prog=f"headstart {command}", description=description, allow_abbrev=False)
