"""`headstart train`: every key of the configuration is an option, and its help is the docstring of its field."""

import ast
import inspect
import json
import logging
import os
from argparse import SUPPRESS, _ActionsContainer
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from headstart import config as config_module
from headstart.cli.options import Parser
from headstart.config import RunConfig, flat
from headstart.config_io import hint_for_key, key_types, load_config, shipped_configs, to_yaml
from headstart.messages import LOG

PURPOSE = """\
Train an image classifier on a folder of images. Every key below can also be set in a YAML file (as section: {key:
value}); the command line takes precedence."""
EXAMPLES = (
    "headstart train --config frozen_head --data.root photos --out runs/first",
    "headstart train --config fine_tune --data.root photos --model.weights bundled --train.epochs 4",
    "torchrun --nproc_per_node 2 -m headstart train --config fine_tune --data.root photos",
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
    if os.environ.get("RANK", "0") != "0":
        return
    if quiet:
        print(path)
    elif config.train.seeds > 1 or config.train.folds:
        _print_repeats(path)


def _print_repeats(path: Path) -> None:
    from rich.table import Column, Table

    from headstart.cli.print_results import plain_console
    from headstart.runs.summary import RepeatsSummary
    from headstart.training.summarize_repeats import repeats_in_words

    summary = RepeatsSummary.read(path)
    console = plain_console(soft_wrap=True)
    names = ("accuracy", "correct", "loss", "best epoch", "seconds")
    table = Table("run", *(Column(name, justify="right", no_wrap=True) for name in names))
    for run in summary.runs:
        correct, seconds = f"{run['correct']} of {run['n']}", f"{run['wall_s']:.0f}"
        row = (f"{run['accuracy']:.1%}", correct, f"{run['loss']:.4f}", str(run["best_epoch"]), seconds)
        table.add_row(run["folder"], *row)
    console.print()
    console.print(table)
    for line in repeats_in_words(summary):
        console.print(line)
    console.print(f"{path}: summary.json and a folder of each run")


def parse_train(argv: Sequence[str]) -> RunConfig:
    """The configuration that the arguments of `headstart train` describe.

    Raises InputError for anything unknown, mistyped or out of range, SystemExit(0) for --help and --print_config."""
    options = vars(train_parser().parse_args(argv))
    files, only_print = options.pop("config"), options.pop("print_config")
    config = load_config(files, options)
    if only_print:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


class _Parser(Parser):
    def hint_for(self, option: str) -> str:
        return hint_for_key(option.removeprefix("--"))


def train_parser() -> Parser:
    parser = _Parser(
        prog="headstart train",
        usage="headstart train [--config NAME] --data.root SOURCE [--out RUN] [--section.key VALUE ...]",
        description=PURPOSE.replace("\n", " "),
        examples=EXAMPLES,
    )
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
    sections = list(_explained())
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
            group.add_argument(f"--{key}", default=SUPPRESS, metavar=_metavar(types[key]), help=text)
    parser.add_argument(
        "--print_config", action="store_true", help="Output of the complete configuration as YAML, without training."
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


def _explained() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """For each section its docstring, and each of its keys with the docstring of the field."""
    classes = [node for node in ast.parse(inspect.getsource(config_module)).body if isinstance(node, ast.ClassDef)]
    for node in sorted(classes, key=lambda node: node.name != RunConfig.__name__):
        prefix = "" if node.name == RunConfig.__name__ else node.name.removesuffix("Config").lower() + "."
        pairs = [
            (f"{prefix}{ast.unparse(field.target)}", inspect.cleandoc(str(text.value.value)))
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        ]
        yield (ast.get_docstring(node) or "").rstrip("."), pairs
