"""The command line, and the only place that ends the process."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from headstart import __version__
from headstart.cli.output import outliving_the_reader, printed_messages
from headstart.errors import InputError, OwnInputError, Stopped, exit_code, known_failure
from headstart.launcher import is_first_process, wrong_environment
from headstart.runtime.signals import StopRequest, answered_ctrl_c
from headstart.wording import command_line, nearest

HELP = """\
headstart trains an image classifier from a folder of images, with a pretrained backbone.

Usage: headstart COMMAND [arguments] [options]

Start here:
  headstart demo
  headstart train photos --out runs/first
  headstart predict runs/first new/*.jpg
  headstart COMMAND --help        purpose, examples and options of a command

Train:
  demo            guided tour: check, train, choose, tune and compare; needs the extra demo
  train           train a classifier: a new head on a frozen backbone, or fine-tuning
  watch           follow a training run from another terminal
  resume          continue an interrupted run
  choose          compare backbones on your images, and choose one

Look at the result:
  open            open the report of a run in the browser
  evaluate        evaluate a finished run on labelled images
  compare         compare runs statistically on the same images
  report          regenerate report.html and the model card of a run
  inspect         print the contents of a model file
  verify          check that this machine reproduces the reference outputs

Use the model:
  predict         classify images: files, folders, globs; to the terminal, csv, jsonl or parquet
  serve           serve a web page and an HTTP API that classify images
  export          write the model for torchvision, transformers, timm, onnx, pt2, openvino
  push            upload model, model card and report to Hugging Face

Data:
  data check      report broken files, copies, leaks and wrong labels
  data apply      create a folder of links without the files that you dropped
  data demo       write the demo data: 2,624 images of solar cells
  data bank       list the stored features, or delete some of them

Machine:
  doctor          print the hardware and software of this machine, and any problems
  doctor parity   check that your configuration gives the same losses on several processes
  bench data      find the bottleneck of training, and recommend settings
  bench features  measure the speed of feature extraction
  completion      print a script that completes commands on Tab in bash, zsh or fish

To train with several processes, use torchrun --nproc_per_node N -m headstart train ..., or
accelerate launch -m headstart train ..., or ./launch.sh.

Exit codes: 0 success; 1 a failed check, a failure of the system such as a full disk, or an internal
error; 2 wrong input; 143 stopped by a signal after saving."""

_FILES = {
    "train": ("train",),
    "resume": ("resume",),
    "predict": ("predict",),
    "data": ("data", "choose"),
    "demo": ("demo",),
    "shell": ("completion",),
    "machine": ("bench", "doctor"),
    "runs": ("evaluate", "inspect", "verify", "push", "compare", "serve", "export", "report", "watch", "open"),
}
COMMANDS = {command: file for file, commands in _FILES.items() for command in commands}
"""Command -> the file in cli/ with the function that runs it. Its result is the exit code, None means 0."""
REPLACED = {
    **{"probe": "headstart choose", "fit": "headstart train", "test": "headstart evaluate"},
    **dict.fromkeys(("check", "clean"), "headstart data check"),
    **{"version": "headstart --version", "install": "pip install 'headstart[EXTRA]'"},
}
"""What to use instead of commands of earlier versions and of other programs."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    with outliving_the_reader() if arguments and arguments[0] in ("train", "resume") else nullcontext():
        code = _exit_code(arguments)
    sys.exit(code)


def _exit_code(argv: list[str]) -> int:
    try:
        if not argv or argv[0] in ("-h", "--help") or argv == ["help"]:
            print(HELP)
            return 0
        if argv[0] == "help":
            argv = [*argv[1:], "--help"]
        if argv[0] == "--version":
            print("headstart", __version__)
            return 0
        if argv[0] in REPLACED:
            raise InputError(f"unknown command {argv[0]}; use {REPLACED[argv[0]]}")
        if argv[0] not in COMMANDS:
            if os.path.exists(argv[0]):
                raise InputError(f"{argv[0]} is not a command; to train on it: {command_line('train', argv[0])}")
            raise InputError(f"unknown command {argv[0]}{nearest(argv[0], COMMANDS) or '; see headstart --help'}")
        if problem := wrong_environment():
            raise OwnInputError(problem)  # of any process: which one is the first may be what is unknown
        command = getattr(import_module(f"headstart.cli.{COMMANDS[argv[0]]}"), argv[0])
        prepare_environment()
        StopRequest.second_signal_ends_process = True
        with printed_messages(), answered_ctrl_c():
            return int(command(argv[1:]) or 0)
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
            return exit_code(error)
        traceback.print_exc()
        print("headstart: internal error; please report the traceback above", file=sys.stderr)
        return 1
    finally:
        StopRequest.second_signal_ends_process = False


def prepare_environment() -> None:
    """Set defaults that the libraries read when they are imported: telemetry is off, and threads sleep while they wait.

    With a decoding worker or another program on one of the cores, OpenMP's spinning halves the speed; on quiet cores it
    gains nothing (docs/benchmarks.md). No library goes online by itself; `push` and data from hf:// do because they are
    asked to."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    # numpy's matrices here are small or split among our own processes, which BLAS threads would slow down
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _prints_errors() -> bool:
    """Every process finds the same mistake; only the first prints it."""
    return is_first_process()
