"""Checks of every request and headers of every response. Plain ASGI, around the application."""

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
DEFAULT_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of a response that has none of its own."""

DRAIN_BYTES, DRAIN_S = 64 * 2**20, 5.0  # limits for reading the rest of a refused request


class Guard:
    """Refuses requests for other host names, and those that a page of another site makes a browser send.

    Another site can let its own name resolve to 127.0.0.1 (DNS rebinding) and then read responses as its own; only the
    Host header shows it. It can also send a form without reading the response; only the Origin header shows it."""

    def __init__(self, app: ASGIApp, *, names: Collection[str]) -> None:
        """names: served besides localhost, this machine's name and numeric addresses, which cannot be rebound."""
        self._app = app
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Content-Security-Policy", DEFAULT_POLICY)
            await send(message)

        problem = self._refusal(Headers(scope=scope))
        app = self._app if problem is None else respond(problem)
        await app(scope, *_draining(receive, send_with_headers))

    def _refusal(self, headers: Headers) -> Problem | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if len(headers.getlist("host")) > 1 or not self._is_served(host):
            return Problem(421, "this host name is not served; headstart serve --allow_host NAME allows it")
        if origin is not None and _host_of(origin) != host.lower():
            return Problem(403, "requests from the page of another site are refused")
        return None

    def _is_served(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or ipaddress.ip_address(name) is not None
        except ValueError:
            return False


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _draining(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The same, but before a response ends, the rest of its request is read and dropped, within limits.

    Many clients send the whole request before they read, and lose the response if the connection closes meanwhile."""
    complete = False

    async def receive_and_note() -> Message:
        nonlocal complete
        message = await receive()
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drain_and_send(message: Message) -> None:
        if complete or message["type"] != "http.response.body" or message.get("more_body", False):
            await send(message)
            return
        await send({**message, "more_body": True})
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not complete and size <= DRAIN_BYTES:
                    size += len((await receive_and_note()).get("body", b""))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return receive_and_note, drain_and_send
