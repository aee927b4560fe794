"""`headstart resume`: an interrupted run again, with its own configuration."""

from argparse import REMAINDER
from pathlib import Path

from headstart.cli.options import Parser, add_run, command_parser
from headstart.errors import InputError
from headstart.launcher import is_first_process
from headstart.runs.lock import finished_in_words, is_finished
from headstart.wording import command_line

FIXED = ("--config", "--out", "--train.resume")


def resume_parser() -> Parser:
    parser = command_parser(
        "resume",
        "Continue an interrupted run, or a folder of repeated runs, with its own configuration. The result is the same "
        "as without the interruption.",
        "runs/first",
        "runs/first --data.root /new/place/photos",
        "runs/five_seeds --runtime.threads 1",
    )
    parser.usage = "headstart resume RUN [--section.key VALUE ...]"
    add_run(parser)
    keys = parser.add_argument(
        "keys",
        nargs=REMAINDER,
        metavar="--KEY VALUE",
        help="Keys of headstart train that may change: runtime.*, data.root, data.num_workers, data.cache, "
        "train.accumulation, train.checkpoint_steps and train.checkpoint_minutes.",
    )
    keys.required = False
    return parser


def resume(argv: list[str]) -> None:
    """Raises InputError if there is nothing to resume, and what `headstart train` raises."""
    parser = resume_parser()
    args = parser.parse_args(argv)
    if {"-h", "--help"} & set(args.keys):
        parser.parse_args(["--help"])
    run, config = Path(args.run), Path(args.run) / "config.yaml"
    if not run.is_dir():
        raise InputError(f"{run} {'is a file' if run.exists() else 'does not exist'}; name the folder of a run")
    if not config.is_file():
        raise InputError(
            f"{run} does not contain a run (it has no config.yaml); name the folder of an interrupted run, or start "
            f"one: {command_line('train', 'DIR', '--out', run)}"
        )
    for word in args.keys:
        if word.partition("=")[0] in FIXED:
            raise InputError(f"{word.partition('=')[0]} cannot be changed: resume continues {run} as it was started")
    if args.keys and not args.keys[0].startswith("--"):
        raise InputError(f"unknown argument {args.keys[0]}; name one run, and keys such as --runtime.threads 1")
    if is_finished(run) and not args.keys:
        if is_first_process():
            print(finished_in_words(run))
        return
    from headstart.cli.train import train

    train(["--config", str(config), *args.keys, "--out", str(run), "--train.resume", "auto"])
