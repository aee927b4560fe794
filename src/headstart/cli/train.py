"""`headstart train`: every key of the configuration is an option, and its help is the docstring of its field."""

import ast
import inspect
import json
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, get_args

from headstart import config as config_module
from headstart.cli.options import Parser
from headstart.config import RunConfig, flat
from headstart.config_io import hint_for_key, key_types, load_config, to_yaml

HELP = """\
Train a classifier on a folder of images.

  headstart train --config configs/frozen_head.yaml --data.root DIR --out RUN
  headstart train --config fine_tune --data.root DIR --model.weights bundled --train.epochs 4
  torchrun --nproc_per_node 2 -m headstart train --config fine_tune --data.root DIR

DIR holds train/ and val/ of class folders, or just class folders. Every key below can be set in a YAML file
(as section: {key: value}) or on the command line (as --section.key value); the command line wins. --config may
be given several times, later files win; a bare name is one of the shipped configurations."""


def train(argv: list[str]) -> None:
    config = parse_train(argv)
    from headstart.training.run import run

    run(config)


def parse_train(argv: Sequence[str]) -> RunConfig:
    """The configuration that the arguments of `headstart train` describe.

    Raises InputError for anything unknown, mistyped or out of range, SystemExit(0) for --help and --print_config."""
    options = vars(_parser().parse_args(argv))
    files, only_print = options.pop("config"), options.pop("print_config")
    config = load_config(files, options)
    if only_print:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


class _Parser(Parser):
    def hint_for(self, option: str) -> str:
        return hint_for_key(option.removeprefix("--"))


class _Formatter(RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=112)


def _parser() -> Parser:
    parser = _Parser(
        prog="headstart train",
        usage="headstart train [--config FILE] --data.root DIR [--out RUN] [--section.key VALUE ...]",
        description=HELP,
        formatter_class=_Formatter,
    )
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML file with any of the keys.")
    parser.add_argument("--print_config", action="store_true", help="Print the configuration and exit.")
    defaults = flat(asdict(RunConfig()))
    types = key_types()
    for title, keys in _explained():
        section = parser.add_argument_group(title)
        for key, text in keys:
            default = defaults[key] if isinstance(defaults[key], str) else json.dumps(defaults[key])
            text = f"{text.replace('%', '%%')} (default: {default or 'empty'})"
            section.add_argument(f"--{key}", default=SUPPRESS, metavar=_metavar(types[key]), help=text)
    return parser


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
