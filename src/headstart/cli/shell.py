"""`headstart completion`: a script that completes commands, options and values in a shell, without starting Python."""

from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from headstart.backbones import BACKBONES
from headstart.cli.main import COMMANDS
from headstart.cli.options import Parser, command_parser
from headstart.config import DEVICES
from headstart.config_io import shipped_configs
from headstart.errors import InputError
from headstart.exporters.formats import FORMATS
from headstart.model.weight_sources import NAMES

SHELLS = ("bash", "zsh", "fish")
_WORDS: dict[str, Callable[[], Iterable[str]]] = {
    "config": shipped_configs,
    "model.backbone": lambda: BACKBONES,
    "model.weights": lambda: NAMES,
    "train.resume": lambda: ("never", "auto"),
    "backbone": lambda: BACKBONES,
    "backbones": lambda: BACKBONES,
    "weights": lambda: NAMES,
    "format": lambda: FORMATS,
    "device": lambda: DEVICES,
}
"""Values of options that the parsers do not list, by the name of the option."""
_AND_FILES = ("config", "model.weights", "train.resume", "weights")
_FILES = ("RUN", "IMAGES", "SOURCE", "PATH", "FILE.json", "FIXES.csv", "PAGE.html")
_FOLDERS = ("DIR", "FOLDER", "NEW")
_PATHS_OF_TRAIN = {"data.root": True, "data.groups": True, "out": False, "runtime.bank": False}
"""Keys of the configuration that are paths -> whether of files, too."""


def completion_parser() -> Parser:
    parser = command_parser(
        "completion",
        "Print a script that completes commands, options and values on Tab. See docs/how-to/completion.md for its "
        "place.",
        "bash",
        "zsh",
        "fish",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="Shell: bash, zsh or fish.")
    return parser


def completion(argv: list[str]) -> None:
    args = completion_parser().parse_args(argv)
    try:
        import shtab
    except ModuleNotFoundError:
        raise InputError("headstart completion needs the package shtab; install it with: pip install shtab") from None
    parser = whole_parser()
    for each in _with_commands(parser):
        each.description = _first_sentence(each.description)
        for action in each._actions:
            _explain(action, shtab)
    print(shtab.complete(parser, args.shell))


def whole_parser() -> ArgumentParser:
    """One parser with all commands below it."""
    whole = ArgumentParser("headstart")
    parsers = {name: _parser_of(name) for name in COMMANDS}
    doctor, parity, train = parsers["doctor"], _parser_of("parity", file="machine"), parsers["train"]
    for action in train._actions:  # parity takes them, too
        if not set(action.option_strings) & parity._option_string_actions.keys():
            parity._add_action(action)
    _put_below(doctor, {"parity": parity})
    _put_below(whole, parsers)
    return whole


def _parser_of(command: str, *, file: str | None = None) -> Parser:
    module = import_module(f"headstart.cli.{file or COMMANDS[command]}")
    parser: Parser = getattr(module, f"{command}_parser")()
    return parser


def _put_below(parser: ArgumentParser, commands: Mapping[str, Parser]) -> None:
    for_argparse: Any = lambda prog, **_: commands[prog.rsplit(" ", 1)[1]]  # noqa: E731
    below = parser.add_subparsers(parser_class=for_argparse, required=False)
    for name, command in commands.items():
        below.add_parser(name, help=_first_sentence(command.description))


def _with_commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """The parser and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                yield from _with_commands(below)


def _first_sentence(text: str | None) -> str:
    return (text or "").partition(". ")[0]


def _explain(action: Action, shtab: Any) -> None:
    """Set what shtab completes: `choices`, or `complete` for files, folders, and words together with files. Of the help
    text, the first sentence is shown."""
    metavar = str(action.metavar)
    action.help = _first_sentence(action.help)
    if action.choices or action.nargs == 0:
        return
    if action.dest in _WORDS:
        words = list(_WORDS[action.dest]())
        if action.dest in _AND_FILES:
            action.complete = _words_and_files(action.dest, words)  # type: ignore[attr-defined]
        else:
            action.choices = words
    elif "|" in metavar:
        action.choices = metavar.split("|")
    elif metavar in _FILES or _PATHS_OF_TRAIN.get(action.dest) is True:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif metavar in _FOLDERS or _PATHS_OF_TRAIN.get(action.dest) is False:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _words_and_files(name: str, words: Sequence[str]) -> dict[str, Any]:
    """In the form that shtab takes: by shell a function, and under "preamble" its definition."""
    function, listed = f"_headstart_{name.replace('.', '_')}_or_file", " ".join(words)
    bash = f'{function}() {{\n  compgen -W \'{listed}\' -- "$1"\n  compgen -f -- "$1"\n}}'
    zsh = f"{function}() {{\n  _alternative 'values:value:({listed})' 'files:file:_files'\n}}"
    fish = f"function {function}\n  printf '%s\\n' {listed}\n  __fish_complete_path (commandline -ct)\nend"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": {"bash": bash, "zsh": zsh, "fish": fish},
    }
