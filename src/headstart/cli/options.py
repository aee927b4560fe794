"""The argument parser of a command, whose mistakes are one sentence, and the options that several commands have."""

import re
import shutil
import sys
import textwrap
from argparse import (
    Action,
    ArgumentParser,
    ArgumentTypeError,
    HelpFormatter,
    Namespace,
    _ActionsContainer,
    _SubParsersAction,
)
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from headstart.config import DEVICES, PRECISIONS
from headstart.errors import InputError
from headstart.files import user_path
from headstart.wording import nearest

WIDEST_HELP = 112
PATHS = {"DIR", "FILE", "FIXES.csv", "FOLDER", "IMAGES", "NEW", "PAGE.html", "PATH", "RUN", "SOURCE"}
"""The metavars of arguments that are paths."""


class Parser(ArgumentParser):
    """Raises InputError where argparse would end the process, except for --help.

    The help begins with the purpose, then come usage and examples, then the options, ungrouped ones first."""

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, add_help=False, formatter_class=_Formatter)
        self.add_argument("-h", "--help", action="help", help="This help.")
        self.examples = tuple(examples)
        self._positionals.title, self._optionals.title = "Arguments", "Options"

    def commands(self, metavar: str) -> "Callable[..., Parser]":
        """A function that adds a sub-command by its name, help text, purpose and the arguments of its examples."""
        what = self.add_subparsers(dest="what", required=True, metavar=metavar)

        def add(name: str, text: str, purpose: str, *examples: str) -> Parser:
            lines = [f"{self.prog} {name} {example}".rstrip() for example in examples]
            added: Parser = what.add_parser(name, help=text, description=purpose, examples=lines)
            return added

        return add

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        formatter.add_text(f"Usage: {self.usage or ' '.join([self.prog, *_usage(self._actions)])}")
        if self.examples:
            formatter.add_text("\n  ".join(["Examples:", *self.examples]))
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(sorted(group._group_actions, key=lambda action: action.dest == "help"))
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Raises InputError that names every unknown option, or else the first argument that is too many."""
        found, unknown = self.parse_known_args(args, namespace)
        if names := [name.split("=")[0] for name in unknown if name[:1] == "-"]:
            raise InputError("; ".join(f"unknown option {name}{self.hint_for(name)}" for name in names))
        if unknown:
            raise InputError(f"unknown argument {unknown[0]}{self.hint_for(unknown[0])}")
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None, **others: Any) -> Any:
        """As usual; hyphens stand for underscores in the names of options, and ~ for the home folder in paths."""
        given = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args([self._spelled(arg) for arg in given], namespace, **others)
        for action in self._actions:
            if action.metavar in PATHS and (value := getattr(found, action.dest, None)):
                paths = [user_path(one) for one in value] if isinstance(value, list) else user_path(value)
                setattr(found, action.dest, paths)
        return found, unknown

    def _spelled(self, arg: str) -> str:
        name, equals, value = arg.partition("=")
        ours = "--" + name[2:].replace("-", "_")
        known = self._option_string_actions
        return ours + equals + value if name[:2] == "--" and name not in known and ours in known else arg

    def hint_for(self, option: str) -> str:
        return nearest(option, _options(self)) or f"; see {self.prog} --help"

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = action.option_strings[-1] if action.option_strings else self.prog.partition(" ")[2]
            hint = nearest(value, action.choices) or f"; see {self.prog} --help"
            raise InputError(f"{what} {value} is not one of {', '.join(action.choices)}{hint}")


class _Formatter(HelpFormatter):
    """Wraps paragraphs, and keeps lines that are indented, such as examples."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, WIDEST_HELP)
        super().__init__(prog, max_help_position=34, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = (line if line.startswith(" ") else textwrap.fill(line, width) for line in text.splitlines())
        return "\n".join(lines)


def _usage(actions: Sequence[Action]) -> Iterator[str]:
    """The arguments and options that are required, and [options] for the others."""
    for action in actions:
        name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        name = f"{name} ..." if action.nargs == "+" else name
        if action.required:
            yield f"{action.option_strings[0]} {name}" if action.option_strings else name
    yield "[options]"


def _options(parser: ArgumentParser) -> Iterator[str]:
    """Long options of the parser and of its sub-parsers."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, _SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)


def command_parser(command: str, purpose: str, *examples: str) -> Parser:
    """purpose: one or two sentences; examples: arguments of the command, which complete a line that can be pasted."""
    return Parser(
        prog=f"headstart {command}",
        description=purpose,
        examples=[f"headstart {command} {example}".rstrip() for example in examples],
    )


def add_model(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="Run folder, or a model.safetensors.")


def check_model_of(run: str) -> None:
    """Raise InputError unless `run` names a model file that can be read; warn if its run is not finished."""
    from headstart.messages import warn
    from headstart.model.find_model import check_model
    from headstart.runs.lock import has_begun, is_finished, resume_command

    check_model(run)
    folder = Path(run)
    if has_begun(folder) and not is_finished(folder):
        warn(f"{run} is not finished, so its model may still improve; to continue it: {resume_command(folder)}")


def add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="Run folder.")


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="Output in JSON format.")


def add_bad_files(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--on_bad_file",
        choices=["refuse", "skip"],
        default="refuse",
        help="Treatment of images that cannot be used (default: refuse). refuse: stop and list them. skip: leave them "
        "out and list them.",
    )


EXCEL = "a byte order mark, and an apostrophe before text that would be a formula"
"""What --excel changes."""


def add_device(parser: _ActionsContainer) -> None:
    parser.add_argument(
        "--device",
        type=_device,
        metavar="NAME",
        help="Device: cpu, cuda, cuda:1, mps (Apple) or xpu (Intel) (default: the GPU, if there is one).",
    )


def _device(name: str) -> str:
    if not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d+)?", name):
        raise ArgumentTypeError(f"{name} is not a device; use cpu, cuda, cuda:1, mps or xpu")
    return name


def add_precision(parser: _ActionsContainer, text: str, *, default: str | None) -> None:
    """text: the help, up to the names of the precisions."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=default,
        metavar="NAME",
        help=f"{text}: measured (the precision of the run's evaluation), fp32, bf16, fp16 or auto (default: "
        f"{default or 'both fp32 and measured'}).",
    )


def add_number(to: _ActionsContainer, name: str, default: float, text: str, *, metavar: str = "N") -> None:
    """An option with a number of the type of its default, which ends its help text."""
    to.add_argument(name, type=type(default), default=default, metavar=metavar, help=f"{text} (default: {default:g}).")


def add_columns(parser: ArgumentParser, *, default: str) -> _ActionsContainer:
    """The options that name the columns of a table, of shards or of a saved dataset. Returns their group."""
    group = parser.add_argument_group("Columns of a table, of shards or of a saved dataset")
    for key, content in (("image", "images or their paths"), ("label", "classes"), ("split", "split, train or val")):
        group.add_argument(f"--{key}_column", metavar="NAME", help=f"Column with the {content} (default: {default}).")
    return group


def columns_of(args: Namespace) -> dict[str, Any]:
    """Those that were given, by their keys in the section data."""
    keys = ("image_column", "label_column", "split_column")
    return {key: getattr(args, key) for key in keys if getattr(args, key) is not None}


def check_at_least(args: Namespace, **limits: int) -> None:
    """Raise InputError for an option below its limit; an option that was not given, or that is not there, is none."""
    for name, least in limits.items():
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise InputError(f"--{name} is {value}; it must be at least {least}")
