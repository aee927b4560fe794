"""The options of `headstart serve`."""

import re
from argparse import ArgumentParser, Namespace
from dataclasses import fields

from headstart.errors import InputError
from headstart.serve.limits import Limits

HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")

_MEANING = {
    "megabytes": "MiB of a request, counted while it arrives",
    "megapixels": "megapixels of an image, read before it is decoded",
    "images": "images in a request",
    "seconds": "seconds for a request to arrive, and again to be answered",
    "requests": "requests that wait; more are told to come back",
    "megabytes_together": "MiB of all the requests that wait",
    "batch": "images that the network sees at once",
    "wait_ms": "milliseconds that a batch waits for company",
}


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one (default: 8000)")
    parser.add_argument("--threads", type=int, help="of the network; default: the usable cores")
    parser.add_argument(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this server that browsers use; may be repeated",
    )
    parser.add_argument("--access_log", action="store_true", help="a line per request")
    limits = parser.add_argument_group("limits")
    for field in fields(Limits):
        default = field.default
        limits.add_argument(
            f"--max_{field.name}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"{_MEANING[field.name]} (default: {default:g})",
        )


def run(args: Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads is {args.threads}; it must be at least 1")
    for name in args.allow_host:
        if not HOST_NAME.fullmatch(name):
            raise InputError(
                f"--allow_host {name} is no bare name of a host, such as models.example.org, without http:// and port, so no browser asks by it"
            )
    try:
        from headstart.serve.server import serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in ("starlette", "uvicorn", "python_multipart"):
            raise
        raise InputError(f"headstart serve needs {missing}; install it with: pip install 'headstart[serve]'") from None
    serve(args)
