"""`headstart serve`: open the model and the address, answer until a signal, finish what is in flight."""

import ipaddress
import logging
import socket
import sys
import threading
from argparse import Namespace
from dataclasses import fields

import uvicorn
from starlette.types import ASGIApp

from headstart.errors import InputError, Stopped
from headstart.predict.predictor import Predictor
from headstart.runtime.signals import StopRequest
from headstart.serve.app import build_app
from headstart.serve.engine import Engine
from headstart.serve.limits import Limits

_LOOK_S = 0.1  # how often a signal is looked for


class Server:
    """The application behind a socket, in a thread of its own, so that signals stay ours."""

    def __init__(self, app: ASGIApp, listening: socket.socket, *, limits: Limits, access_log: bool = False) -> None:
        self._socket = listening
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_level="info" if access_log else "warning",
                access_log=access_log,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=20,
                timeout_graceful_shutdown=int(2 * limits.seconds) + 1,
            )
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, name="http")

    def start(self) -> None:
        self._thread.start()

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def stop(self) -> None:
        """Accept nothing more, answer what is in flight, end."""
        self._server.should_exit = True
        self._thread.join()


def serve(args: Namespace) -> None:
    """`headstart serve`. Raises InputError, and Stopped after a signal."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a malformed form is the client's affair
    limits = Limits(**{field.name: getattr(args, f"max_{field.name}") for field in fields(Limits)})
    listening = listen(args.host, args.port)
    try:
        predictor = Predictor(args.run)
    except InputError:
        listening.close()
        raise
    engine = Engine(predictor, limits=limits, threads=args.threads)
    server = Server(
        build_app(engine, limits=limits, names=tuple(args.allow_host)),
        listening,
        limits=limits,
        access_log=args.access_log,
    )
    with StopRequest() as stop:
        server.start()
        print(
            f"{', '.join(predictor.classes[:5])}{', ...' if len(predictor.classes) > 5 else ''} at {address(listening)} (Ctrl-C ends it)",
            flush=True,
        )
        while server.is_running() and stop.signal_name is None:
            server.wait(_LOOK_S)
        server.stop()
        engine.close()
    if stop.signal_name is None:
        raise RuntimeError("the HTTP server ended by itself; what it said is above")
    raise Stopped(f"{stop.signal_name}: everything that was asked before it has been answered")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any free one. Warns if others can reach it. Raises InputError."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; it must lie in 0 to 65535")
    try:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: a name longer than names can be
        reason = error.strerror if isinstance(error, OSError) else "no name of a machine"
        raise InputError(
            f"--host {host} is no address of this machine ({reason}); leave it out, or use 0.0.0.0"
        ) from None
    try:
        listening = socket.create_server((found[0], port), family=family, backlog=1024)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror}); try --port 0 for any free one"
        ) from None
    if not ipaddress.ip_address(found[0]).is_loopback:
        print(
            f"headstart: warning: whoever can reach {host} can use this server; it has no passwords and no encryption, so put it behind "
            "a proxy that has them",
            file=sys.stderr,
        )
    return listening


def address(listening: socket.socket) -> str:
    """As a URL."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
