"""`headstart demo`: a guided tour, whose stages are commands of headstart in this process."""

import shlex
import shutil
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.cli import data, runs, train
from headstart.cli.options import Parser, command_parser
from headstart.errors import InputError, Stopped
from headstart.files import check_local
from headstart.launcher import num_processes

if TYPE_CHECKING:
    from headstart.demo import Demo, Plan

WIDEST_TEXT = 100
_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "data": data.data,
    "train": train.train,
    "choose": data.choose,
    "compare": runs.compare,
}


def demo_parser() -> Parser:
    parser = command_parser(
        "demo",
        "Guided tour in minutes: check, train, choose, tune and compare on 800 images of solar cells. Needs the extra "
        "demo (pip install 'headstart[demo]'), but no network, and resumes if interrupted.",
        "",
        "demo_folder",
        "/tmp/demo",
    )
    parser.add_argument(
        "dir",
        nargs="?",
        default="headstart_demo",
        metavar="DIR",
        help="Folder to create, or the folder of an interrupted demo (default: headstart_demo).",
    )
    return parser


def demo(argv: list[str]) -> None:
    args = demo_parser().parse_args(argv)
    from headstart.demo import Plan

    check_local(args.dir, option="DIR")
    run_demo(Path(args.dir), Plan())


def run_demo(folder: Path, plan: "Plan") -> dict[str, float]:
    """Run the stages that are not done; returns the seconds of each by its title. Raises InputError, and Stopped after
    a signal."""
    if num_processes() > 1:
        raise InputError("headstart demo runs in one process; start it without torchrun or accelerate launch")
    from headstart.demo import Demo

    found = Demo(folder, plan)
    again = f"the same command continues: headstart demo {shlex.quote(str(folder))}"
    try:
        return _run(found)
    except Stopped as stop:
        raise Stopped(f"stopped by {stop.signal_name or 'a signal'}; {again}", signal_name=stop.signal_name) from None
    except KeyboardInterrupt:
        raise Stopped(f"stopped by SIGINT; {again}", signal_name="SIGINT") from None


def _run(demo: "Demo") -> dict[str, float]:
    from headstart.demo import seconds_here

    began = time.perf_counter()
    stages = demo.stages()
    todo = [stage for stage in stages if not stage.is_done()]
    _say(f"The demo of headstart, in the folder {demo.folder}. Each step is a command that also runs alone.")
    if any(stage.gflop for stage in todo):
        _say("Measuring the speed of this machine...")
        left = "" if len(todo) == len(stages) else " for what is left"
        _say(f"On this machine, the demo takes about {_duration(seconds_here(todo, demo.plan))}{left}.")
    demo.create_folder()
    took = {}
    for number, stage in enumerate(stages, 1):
        print(f"\n{number}/{len(stages)} {stage.title}")
        _say(stage.purpose)
        command = stage.command() if stage in todo else None
        if command is None:
            _say("This step is done.")
        else:
            print(f"$ headstart {shlex.join(command)}", flush=True)
            started = time.perf_counter()
            _COMMANDS[command[0]](command[1:])
            took[stage.title] = time.perf_counter() - started
        if meaning := stage.meaning():
            _say(f"-> {meaning}")
    print(f"\nThe demo took {_duration(time.perf_counter() - began)}.")
    print("\n".join(demo.next_steps()), flush=True)
    return took


def _say(text: str) -> None:
    width = min(shutil.get_terminal_size().columns, WIDEST_TEXT)
    print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False), flush=True)


def _duration(seconds: float) -> str:
    """'40 seconds', '3 minutes', '3.5 minutes'."""
    if seconds < 90:
        return f"{max(round(seconds / 10), 1) * 10} seconds"
    return f"{round(seconds / 30) / 2:g} minutes"
