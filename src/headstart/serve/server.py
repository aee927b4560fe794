"""`headstart serve`: load the model, serve it until a signal, finish the requests in flight."""

import ipaddress
import logging
import socket
import sys
import threading
from argparse import Namespace
from dataclasses import fields

import psutil
import uvicorn
from starlette.types import ASGIApp

from headstart.errors import InputError, Stopped
from headstart.predict.predictor import Predictor
from headstart.runtime.signals import StopRequest
from headstart.serve.app import build_app
from headstart.serve.engine import Engine
from headstart.serve.limits import Limits

_BRIDGES = ("docker", "br-", "veth", "virbr")  # of containers and virtual machines
_POLL_S = 0.1  # interval of the check for a signal


class Server:
    """The HTTP server in a thread of its own, so that signals reach the main thread."""

    def __init__(self, app: ASGIApp, listening: socket.socket, *, limits: Limits, access_log: bool = False) -> None:
        config = uvicorn.Config(
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
        self._server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, name="http")

    def stop(self) -> None:
        """Accept no more requests, finish those in flight, end."""
        self._server.should_exit = True
        self.thread.join()


def serve(args: Namespace) -> None:
    """Raises InputError, and Stopped after a signal."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a malformed form is the client's fault
    limits = Limits(**{field.name: getattr(args, f"max_{field.name}") for field in fields(Limits)})
    with listen(args.host, args.port) as listening:
        engine = Engine(Predictor(args.run), limits=limits, threads=args.threads)
        app = build_app(engine, limits=limits, names=tuple(args.allow_host))
        server = Server(app, listening, limits=limits, access_log=args.access_log)
        with StopRequest() as stop:
            server.thread.start()
            classes = engine.predictor.classes
            shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            print(f"{shown} at {address(listening)} (Ctrl-C ends it)", flush=True)
            while server.thread.is_alive() and stop.signal_name is None:
                server.thread.join(_POLL_S)
            server.stop()
            engine.close()
    if stop.signal_name is None:
        raise RuntimeError("the HTTP server ended by itself; its messages are above")
    raise Stopped(f"{stop.signal_name}: all requests received before it are finished")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Warns if other machines can reach it. Raises InputError."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; it must lie in 0 to 65535")
    try:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: longer than a host name can be
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise InputError(
            f"--host {host} is not an address of this machine ({reason}); omit it, or use 0.0.0.0"
        ) from None
    try:
        listening = socket.create_server((found[0], port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror
        raise InputError(f"cannot listen on {host} port {port} ({reason}); try --port 0 for any free one") from None
    if not ipaddress.ip_address(found[0]).is_loopback:
        print(
            f"headstart: warning: every machine that reaches {host} can use this server; it has neither passwords nor "
            "encryption, so put it behind a proxy that has both",
            file=sys.stderr,
        )
    return listening


def address(listening: socket.socket) -> str:
    """What a browser opens; on a server for all addresses, one that other machines can reach."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = reachable_address(listening.family) or "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def reachable_address(family: int) -> str | None:
    """The first address of this machine in its networks, without those of virtual bridges; None if it has none."""
    states = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        if name not in states or not states[name].isup or name.startswith(_BRIDGES):
            continue
        for one in addresses:
            if one.family == family:
                found = ipaddress.ip_address(one.address.partition("%")[0])
                if not (found.is_loopback or found.is_link_local):
                    return str(found)
    return None
