"""The options of `headstart serve`."""

import re
from argparse import ArgumentParser, Namespace
from dataclasses import fields

from headstart.cli.options import add_model, add_number, check_model_of
from headstart.errors import InputError
from headstart.serve.limits import Limits
from headstart.wording import install_command

HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


def add_options(parser: ArgumentParser) -> None:
    add_model(parser)
    add = parser.add_argument
    add_number(parser, "--port", 8000, "Port to listen on; 0: any free port")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on (default: 127.0.0.1).")
    names = "Host name by which browsers reach this server; may be repeated (default: none)."
    add("--allow_host", action="append", default=[], metavar="NAME", help=names)
    add("--threads", type=int, metavar="N", help="CPU threads of the network (default: the usable cores).")
    add("--access_log", action="store_true", help="Log line for each request.")
    limits = parser.add_argument_group("Limits")
    for field in fields(Limits):
        add_number(limits, f"--max_{field.name}", getattr(Limits, field.name), field.metadata["help"])


def run(args: Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads is {args.threads}; it must be at least 1")
    for name in args.allow_host:
        if not HOST_NAME.fullmatch(name):
            raise InputError(
                f"--allow_host {name} is not a bare host name such as models.example.org, without http:// and port"
            )
    check_model_of(args.run)
    try:
        from headstart.serve.server import serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in ("pydantic", "starlette", "uvicorn", "python_multipart"):
            raise
        raise InputError(f"headstart serve needs {missing}; install it with: {install_command('serve')}") from None
    serve(args)
