"""`headstart train`: every key of the configuration is an option, and its help is the docstring of its field."""

import json
import logging
from argparse import SUPPRESS, _ActionsContainer
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from headstart.cli.options import Parser
from headstart.cli.output import clickable
from headstart.config import RunConfig, flat
from headstart.config_io import hint_for_key, key_types, load_config, shipped_configs, to_yaml
from headstart.config_schema import explained, json_schema
from headstart.errors import InputError
from headstart.launcher import is_first_process
from headstart.messages import LOG
from headstart.wording import command_line

PURPOSE = """\
Train an image classifier on a folder of images. Every key below can also be set in a YAML file (as section: {key:
value}); the command line takes precedence."""
EXAMPLES = (
    "headstart train photos",
    "headstart train photos --config fine_tune --train.epochs 4 --out runs/tuned",
    "torchrun --nproc_per_node 2 -m headstart train photos --config fine_tune",
)
MOST_USED = (
    "data.root",
    "out",
    "model.weights",
    "strategy.name",
    "data.image_size",
    "train.epochs",
    "train.batch_size",
    "optim.lr",
    "train.resume",
    "seed",
)
"""Keys that the help lists before those of the sections."""


def train(argv: list[str]) -> None:
    config = parse_train(argv)
    from headstart.training.run import run

    quiet = config.runtime.quiet
    if quiet:
        LOG.setLevel(logging.WARNING)
    path = run(config, progress="silent" if quiet else "terminal")
    if not is_first_process():
        return
    if quiet:
        print(path)
    elif config.train.seeds > 1 or config.train.folds:
        _print_repeats(path)


def _print_repeats(path: Path) -> None:
    from headstart.cli.tables import print_table
    from headstart.report.repeats import command_to_train_again, repeats_in_words
    from headstart.runs.summary import RepeatsSummary

    summary = RepeatsSummary.read(path)
    by_epochs = summary.epochs > 1  # a fitted head has a single result
    names = ("accuracy", "correct", "loss", *(["best epoch"] if by_epochs else []), "seconds")
    rows = []
    for run in summary.runs:
        correct, seconds = f"{run['correct']} of {run['n']}", f"{run['wall_s']:.0f}"
        best = [str(run["best_epoch"])] if by_epochs else []
        rows.append((run["folder"], f"{run['accuracy']:.1%}", correct, f"{run['loss']:.4f}", *best, seconds))
    print()
    print_table(("run", *names), rows, right=names)
    print("\n".join(repeats_in_words(summary)))
    print(f"report: {clickable(path / 'report.html')}")
    again = [command_to_train_again(path)] if summary.repeats == "folds" else []
    print("\n  ".join(["next:", command_line("open", path), *again]))


def parse_train(argv: Sequence[str]) -> RunConfig:
    """The configuration that the arguments of `headstart train` describe.

    Raises InputError for anything unknown, mistyped or out of range, SystemExit(0) for --help, --print_config and
    --print_schema."""
    options = vars(train_parser().parse_args(argv))
    if options.pop("print_schema"):
        print(json.dumps(json_schema(), indent=2))
        raise SystemExit(0)
    files, only_print, folder = options.pop("config"), options.pop("print_config"), options.pop("dir")
    if folder is not None:
        if options.get("data.root", folder) != folder:
            raise InputError(f"the images are named twice, as {folder} and as --data {options['data.root']}; use one")
        options["data.root"] = folder
    config = load_config(files, options)
    if only_print:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


class _Parser(Parser):
    def hint_for(self, option: str) -> str:
        return hint_for_key(option.removeprefix("--")).replace("did you mean ", "did you mean --")


def train_parser() -> Parser:
    parser = _Parser(
        prog="headstart train",
        usage="headstart train DIR [--config NAME] [--out RUN] [--section.key VALUE ...]",
        description=PURPOSE.replace("\n", " "),
        examples=EXAMPLES,
    )
    parser.add_argument("dir", nargs="?", metavar="DIR", help="Folder of images, or another source: --data.root.")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="NAME",
        help="YAML file, or a configuration that comes with headstart: "
        f"{', '.join(shipped_configs())}. May be repeated; later files take precedence.",
    )
    defaults = flat(asdict(RunConfig()))
    types = key_types()
    sections = list(explained())
    texts = {key: text for _, keys in sections for key, text in keys}
    most_used = {key: texts.pop(key) for key in MOST_USED}
    groups: list[tuple[_ActionsContainer, dict[str, str]]] = [(parser, most_used)]
    for title, keys in sections:
        if rest := {key: texts[key] for key, _ in keys if key in texts}:
            groups.append((parser.add_argument_group(title), rest))
    for group, shown in groups:
        for key, text in shown.items():
            default = defaults[key] if isinstance(defaults[key], str) else json.dumps(defaults[key])
            text = _with_default(text.replace("%", "%%"), default or "empty")
            names = [f"--{key}", *(["--data"] if key == "data.root" else [])]
            group.add_argument(*names, dest=key, default=SUPPRESS, metavar=_metavar(types[key]), help=text)
    parser.add_argument(
        "--print_config", action="store_true", help="Output of the complete configuration as YAML, without training."
    )
    parser.add_argument(
        "--print_schema", action="store_true", help="Output of the JSON schema of configuration files, for editors."
    )
    return parser


def _with_default(text: str, default: str) -> str:
    """The default at the end of the first sentence."""
    first, stop, others = text.partition(". ")
    return f"{first.removesuffix('.')} (default: {default}){stop or '.'}{others}"


def _metavar(kind: Any) -> str:
    kinds = get_args(kind) or (kind,)
    if isinstance(kinds[0], str):
        return "|".join(kinds)
    return {int: "N", float: "X", bool: "true|false", str: "TEXT"}[kinds[0]]
