"""What every request must pass and every answer carries. Plain ASGI, around everything else."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.problems import Problem, respond

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of an answer that brings none of its own."""

HEARD_BYTES, HEARD_S = 64 * 2**20, 5.0  # of a body that nobody wants


class Guard:
    """Refuses requests under a name that is not ours, and those that a page of somebody else makes a browser send.

    A page from elsewhere can have its own name resolve to 127.0.0.1 (DNS rebinding) and then read answers as if they were its own; only the Host
    header gives that away. It can also send a form without reading the answer; only the Origin header gives that away.
    """

    def __init__(self, app: ASGIApp, *, names: Collection[str]) -> None:
        """names: host names to answer to, besides localhost, this machine's name and numeric addresses, which nobody can rebind."""
        self._app = app
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", NOTHING)
            await send(message)

        problem = self._objection(Headers(scope=scope))
        receive, patient_send = _hearing_out(receive, send_guarded)
        await (self._app if problem is None else respond(problem))(scope, receive, patient_send)

    def _objection(self, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) > 1 or not self._is_ours(host):
            return Problem(421, "this server does not answer to that name; headstart serve --allow_host NAME makes it")
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            return Problem(403, "requests from another site's page are not answered")
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _hearing_out(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The same, but an answer that comes before the end of the request is not the end: what the client still sends is read and forgotten, within
    bounds. Many clients send all of it before they look for an answer, and a connection that is closed meanwhile loses the answer."""
    arrived = False

    async def receive_noted() -> Message:
        nonlocal arrived
        message = await receive()
        arrived = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send_patiently(message: Message) -> None:
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if arrived or not last:
            await send(message)
            return
        await send({**message, "more_body": True})
        heard = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARD_S):
                while not arrived and heard <= HEARD_BYTES:
                    heard += len((await receive_noted()).get("body", b""))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return receive_noted, send_patiently
