"""The argument parser of a command, whose mistakes are one sentence, and the options that several commands have."""

from argparse import Action, ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from headstart.errors import InputError
from headstart.wording import nearest


class Parser(ArgumentParser):
    """Raises InputError where argparse would end the process, except for --help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            raise InputError(f"unknown {'option' if name[:1] == '-' else 'argument'} {name}{self.hint_for(name)}")
        return found

    def hint_for(self, option: str) -> str:
        """A clause for an option that does not exist."""
        return nearest(option, _options(self)) or f"; see {self.prog} --help"

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = action.option_strings[-1] if action.option_strings else self.prog.partition(" ")[2]
            hint = nearest(value, action.choices) or f"; see {self.prog} --help"
            raise InputError(f"{what} {value} is none of {', '.join(action.choices)}{hint}")


def _options(parser: ArgumentParser) -> Iterator[str]:
    """Long options of the parser and of its sub-parsers."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, _SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)


def command_parser(command: str, description: str) -> Parser:
    return Parser(prog=f"headstart {command}", description=description)


def add_model(parser: ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, or a model.safetensors")


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_bad_files(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--on_bad_file",
        choices=["refuse", "skip"],
        default="refuse",
        help="unreadable images: stop and list them, or leave them out and list them (default: refuse)",
    )


def add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps or xpu (default: the GPU if there is one)")


def add_columns(parser: ArgumentParser, *, default: str) -> None:
    """The options that name the columns of a table, of shards or of a saved dataset."""
    for key, content in (("image", "the images or their paths"), ("label", "the classes"), ("split", "train or val")):
        parser.add_argument(
            f"--{key}_column", metavar="NAME", help=f"column of a table that holds {content} (default: {default})"
        )


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
