#!/usr/bin/env python3
"""Write configuration.md, commands.md and config.schema.json in docs/reference from --help, and python.md from
docstrings.

python scripts/make_reference.py           write the pages
python scripts/make_reference.py --check   exit code 1 if a page is out of date (whitespace is ignored)
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import headstart
from headstart.cli.main import COMMANDS, main
from headstart.cli.options import Parser
from headstart.config_schema import json_schema
from headstart.predict.predictor import Predictor

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
HAVE_SUBCOMMANDS = {
    "data": ("data check", "data apply", "data bank", "data demo"),
    "bench": ("bench features", "bench data"),
    "doctor": ("doctor", "doctor parity"),
}
WRITTEN_BY = "<!-- written by scripts/make_reference.py; do not edit -->"


def help_of(command: str) -> str:
    printed = io.StringIO()
    fixed_width = patch.dict(os.environ, {"COLUMNS": "100"})
    with fixed_width, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    return printed.getvalue().strip()


def parser_of(command: str) -> Parser:
    """The argument parser of a command, taken where it would read the arguments."""
    found: list[Parser] = []

    def stop(parser: Parser, *_: object) -> None:
        found.append(parser)
        raise SystemExit(0)

    with patch.object(Parser, "parse_args", stop), contextlib.suppress(SystemExit):
        main([command])
    return found[0]


def commands_page() -> str:
    parts = [
        "# Commands",
        WRITTEN_BY,
        "`headstart COMMAND --help` prints the same text. [Exit codes](exit_codes.md) are the same for all commands.",
        f"```text\n{help_of('')}\n```",
    ]
    for name in COMMANDS:
        for command in HAVE_SUBCOMMANDS.get(name, (name,)):
            text = help_of(command)
            if command == "train":  # up to the end of the first group of options
                before, options, after = text.partition("\nOptions:\n")
                text = before + options + after.partition("\n\n")[0]
                parts += [
                    "## headstart train",
                    f"```text\n{text}\n```",
                    "Every key of the [configuration](configuration.md) is an option.",
                ]
            else:
                parts += [f"## headstart {command}", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def configuration_page() -> str:
    parts = [
        "# Configuration keys",
        WRITTEN_BY,
        "Each key can be set in a YAML file (`optim: {lr: 0.003}`), on the command line (`--optim.lr 0.003`)\n"
        'and in Python (`headstart.train("photos", **{"optim.lr": 0.003})`). The command line takes precedence\n'
        "over files, and later files over earlier ones. A key that does not exist is refused. For editors, there\n"
        "is a [JSON schema](config.schema.json) ([how to use it](../how-to/completion.md)).",
    ]
    for group in parser_of("train")._action_groups:
        keys = [action for action in group._group_actions if action.default == argparse.SUPPRESS and action.metavar]
        rows = [row_of(action) for action in keys]
        if rows:
            parts.append("## Main keys" if group.title == "Options" else f"## {group.title}")
            parts.append("\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def row_of(action: argparse.Action) -> str:
    text = " ".join((action.help or "").replace("%%", "%").split())
    default = ""
    if found := re.search(r"\s*\(default: ([^()]*)\)", text):
        text = text[: found.start()] + text[found.end() :]
        default = found[1] if found[1] == "empty" else f"`{found[1]}`"
    values = ", ".join(f"`{value}`" for value in str(action.metavar).split("|"))
    text = text.replace("|", "\\|").replace("<", "&lt;")
    text = re.sub(r"\(docs/([\w/-]+\.md)\)", r"([details](../\1))", text)
    return f"| `{action.option_strings[-1].removeprefix('--')}` | {values} | {default} | {text} |"


PYTHON = """\
# Python interface

{written_by}

```python
import headstart

keys = {{"model.weights": "bundled"}}
run = headstart.train("photos", config="frozen_head", out="runs/third", **keys)
print(run.accuracy, run.accuracy_ci95, run.report_path)
predictor = headstart.load("runs/third")
for prediction in predictor.predict("photos/ants"):
    print(prediction.path, prediction.label, prediction.probability)
```

- The functions do what the [commands](commands.md) do, and take their options as keywords. They
  print nothing except the progress bar of `train`. Messages go to `logging.getLogger("headstart")`.
- A mistake in the input raises `headstart.InputError`, a `ValueError`, with the message of the
  command line.
- Results are frozen dataclasses. `repr` shows the most important values.
- `python -m pydoc headstart.results` describes the fields of the results, and
  `python -m pydoc headstart.predict.predictor` those of a prediction.
"""


def python_page() -> str:
    parts = [PYTHON.format(written_by=WRITTEN_BY).rstrip()]
    functions = {name for name in headstart.__all__ if inspect.isfunction(getattr(headstart, name))}
    members = {f"headstart.{name}": getattr(headstart, name) for name in sorted(functions, key=_place)}
    members["Predictor.predict"] = Predictor.predict
    for name, function in members.items():
        signature = inspect.signature(function)
        arguments = "".join(f"    {argument},\n" for argument in _arguments(signature))
        returns = _annotation(signature.return_annotation)
        parts.append(f"## {name}")
        parts.append(f"```text\n{name}(\n{arguments}) -> {returns}\n\n{inspect.getdoc(function)}\n```")
    return "\n\n".join(parts) + "\n"


def _place(name: str) -> int:
    first = ("train", "load", "evaluate", "compare", "choose", "verify", "export", "check_data")
    return first.index(name) if name in first else len(first)


def _arguments(signature: inspect.Signature) -> list[str]:
    """The arguments without self, with a star before those that are only keywords."""
    found: list[str] = []
    starred = False
    for argument in signature.parameters.values():
        if argument.name == "self":
            continue
        if argument.kind is argument.KEYWORD_ONLY and not starred:
            found.append("*")
        starred = starred or argument.kind in (argument.KEYWORD_ONLY, argument.VAR_POSITIONAL)
        stars = {argument.VAR_POSITIONAL: "*", argument.VAR_KEYWORD: "**"}.get(argument.kind, "")
        default = "" if argument.default is argument.empty else f" = {argument.default!r}"
        found.append(f"{stars}{argument.name}: {_annotation(argument.annotation)}{default}")
    return found


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"headstart\.[\w.]*\.", "", text)


def schema_page() -> str:
    return json.dumps(json_schema(), indent=2) + "\n"


PAGES = {
    "configuration.md": configuration_page,
    "config.schema.json": schema_page,
    "commands.md": commands_page,
    "python.md": python_page,
}


def outdated() -> list[str]:
    """Names of the pages that differ from what this script writes, in more than white space."""
    return [
        name for name, page in PAGES.items() if (REFERENCE / name).read_text(encoding="utf-8").split() != page().split()
    ]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if names := outdated():
            sys.exit(f"docs/reference: {', '.join(names)} out of date; run python scripts/make_reference.py")
    else:
        for name, page in PAGES.items():
            (REFERENCE / name).write_text(page(), encoding="utf-8")
