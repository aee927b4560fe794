"""The argument parser of a command: a mistake is one sentence."""

import re
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from typing import NoReturn

from headstart.errors import InputError


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        from headstart.wording import nearest

        hint = f"; see {self.prog} --help"
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            message, hint = f"unknown option {unknown[1]}", nearest(unknown[1], _options(self)) or hint
        elif chosen := re.match(r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)", message):
            known = chosen[3].replace("'", "").split(", ")
            what = chosen[1] if chosen[1].startswith("--") else self.prog.partition(" ")[2]
            message, hint = f"{what} {chosen[2]} is none of {', '.join(known)}", nearest(chosen[2], known) or hint
        raise InputError(message + hint)


def _options(parser: ArgumentParser) -> Iterator[str]:
    """Of the parser and of all below it."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, _SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)


def command_parser(command: str, description: str) -> ArgumentParser:
    """Raises InputError where argparse would end the process, except for --help."""
    return _Parser(prog=f"headstart {command}", description=description, allow_abbrev=False)
