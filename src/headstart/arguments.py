"""The argument parser of a command: a mistake is one sentence."""

from argparse import ArgumentParser
from typing import NoReturn

from headstart.errors import InputError


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def command_parser(command: str, description: str) -> ArgumentParser:
    """Raises InputError where argparse would end the process, except for --help."""
    return _Parser(prog=f"headstart {command}", description=description, allow_abbrev=False)
