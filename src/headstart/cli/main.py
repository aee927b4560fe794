"""The command line, and the only place that ends the process."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from headstart import prepare_environment
from headstart.cli.output import outliving_the_reader
from headstart.errors import InputError, OwnInputError, Stopped, known_failure

HELP = """\
headstart: from a folder of images to a trained, evaluated, saved ResNet-18

  headstart train --config frozen_head --data.root DIR   train (headstart train --help lists every key)
  headstart evaluate RUN --data DIR                      evaluate a finished run on labelled images
  headstart predict RUN_OR_MODEL PATHS... [--out FILE]   classify files, folders, globs; csv, jsonl or parquet
  headstart inspect RUN_OR_MODEL [--json]                print the contents of a model file
  headstart verify RUN_OR_MODEL                          check that this machine reproduces the reference outputs
  headstart push RUN REPO_ID [--dry-run]                 upload model, model card and report to Hugging Face
  headstart compare RUN_A RUN_B [...] [--out PAGE.html]  compare runs statistically on the same images
  headstart serve RUN_OR_MODEL                           a page and an HTTP API that classify images, on this machine
  headstart export RUN --format FMT --out P              for another program: timm, transformers, onnx, pt2 and more
  headstart report RUN                                   write report.html and the model card of a run again
  headstart watch RUN                                    follow a training run from another terminal
  headstart probe DIR                                    accuracy of a frozen backbone on a folder, in seconds
  headstart data check DIR [--labels] [--out FOLDER]     problems of a data set: broken files, copies, leaks, labels
  headstart data apply FIXES.csv --data DIR --out NEW    a new folder of links without them
  headstart data demo DIR                                write the demo data: 2,624 solar cells
  headstart data bank                                    list the feature bank, or delete from it
  headstart bench features --data DIR                    speed of feature extraction on this machine
  headstart bench data --data DIR                        the bottleneck of training here, and the settings to choose
  headstart doctor                                       hardware and software of this machine, and problems found
  headstart doctor parity --config C --data.root DIR     check that your configuration trains the same in many ways

To train with several processes: torchrun --nproc_per_node N -m headstart train ..., accelerate launch -m headstart
train ..., or ./launch.sh. Exit codes: 0 done, 2 wrong input, 1 a check or the system failed or an
internal error, 143 stopped by a signal after saving."""

_ON_RUNS = ("evaluate", "inspect", "verify", "push", "compare", "serve", "export", "report", "watch")
COMMANDS = ("train", "predict", "data", "probe", "bench", "doctor", *_ON_RUNS)


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
        # the decoder checks the size itself and names the file
        warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
        prepare_environment()
        # numpy's matrices here are small or split among our own processes, which BLAS threads would slow down
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return command(argv[1:]) or 0
    except InputError as error:
        if _prints_errors() or isinstance(error, OwnInputError):
            print(f"headstart: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        if _prints_errors():
            print(f"headstart: {stop}", file=sys.stderr)
        return 143
    except SystemExit as end:  # --help of a command, or argparse
        return int(end.code or 0)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if hasattr(signal, "SIGCHLD"):  # torch's handler raises when a worker has died: not while this is printed
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if known := known_failure(error, command=argv[0]):
            print(f"headstart: {known}", file=sys.stderr)
            return 1
        traceback.print_exc()
        print("headstart: internal error; please report the traceback above", file=sys.stderr)
        return 1


def _prints_errors() -> bool:
    """Every process finds the same mistake; only the first prints it."""
    return os.environ.get("RANK", "0") == "0"


def _command(name: str) -> Callable[[list[str]], int | None]:
    """What runs a command; its result is the exit code, None means 0. Only its own file is imported."""
    match name:
        case "train":
            from headstart.cli import train

            return train.train
        case "predict":
            from headstart.cli import predict

            return predict.predict
        case "data" | "probe":
            from headstart.cli import data

            return data.data if name == "data" else data.probe
        case "bench" | "doctor":
            from headstart.cli import machine

            return machine.bench if name == "bench" else machine.doctor
        case _ if name in _ON_RUNS:
            from headstart.cli import runs

            run: Callable[[list[str]], int | None] = getattr(runs, name)
            return run
    from headstart.wording import nearest

    raise InputError(f"unknown command {name}{nearest(name, COMMANDS) or '; see headstart --help'}")
