"""The command line, and the only place that ends the process."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from headstart import prepare_environment
from headstart.cli.options import command_parser
from headstart.cli.output import outliving_the_reader
from headstart.errors import InputError, OwnInputError, Stopped, known_failure

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
  headstart doctor                                       what this machine offers, and problems found
  headstart doctor parity --config C --data.root DIR     your own run, many ways: does it stay the same run?

The same on several processes: torchrun --nproc_per_node N -m headstart train ..., accelerate launch -m headstart
train ..., or ./launch.sh. Exit codes: 0 done, 2 wrong input, 1 a check or the system failed or an
internal error, 143 stopped by a signal after saving."""

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
    if argv[:1] != ["train"]:
        return _run(argv)
    with outliving_the_reader():
        return _run(argv)


def _run(argv: list[str]) -> int:
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(HELP)
            return 0
        if argv[0] == "--version":
            from importlib.metadata import version

            print("headstart", version("headstart"))
            return 0
        command = _command(argv[0])
        # the decoder looks at the size itself, and says which file it is
        warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
        prepare_environment()
        # numpy's matrices here are small or are shared out by ourselves; its own threads would wait for each other
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return command(argv[1:]) or 0
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
        print("headstart: internal error; please report the traceback above", file=sys.stderr)
        return 1


def _speaks() -> bool:
    """The same mistake is found by every process; one of them says so."""
    return os.environ.get("RANK", "0") == "0"


def _command(name: str) -> Callable[[list[str]], int | None]:
    """What runs it; its result is the exit code, None means 0."""
    if name in ("train", "probe"):
        return _train if name == "train" else _probe
    if name in ("bench", "doctor"):
        from headstart.cli import machine as machine_cli

        return machine_cli.bench if name == "bench" else machine_cli.doctor
    if name == "data":
        from headstart.cli import data as data_cli

        return data_cli.data
    if name in COMMANDS:
        from headstart.cli import runs as run_cli

        run: Callable[[list[str]], int | None] = getattr(run_cli, name)
        return run
    from headstart.wording import nearest

    raise InputError(f"unknown command {name}{nearest(name, COMMANDS) or '; see headstart --help'}")


def _train(argv: list[str]) -> None:
    from headstart.config_io import parse_train

    config = parse_train(argv)
    from headstart.training.run import run

    run(config)


def _probe(argv: list[str]) -> None:
    from headstart.cli import data as data_cli

    parser = command_parser(
        "probe", "What a frozen backbone can do on a folder: cross-validated accuracy, learning curve."
    )
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
    from headstart.diagnostics.probe import probe_command

    probe_command(config, repeats=args.repeats, out=args.out)
