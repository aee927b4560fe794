"""What a request is told when it cannot be answered: a JSON problem object (RFC 9457) with a sentence of ours, never a library's."""

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is no prediction. detail: one sentence, fit for a stranger."""

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}

    def to_json(self) -> dict[str, Any]:
        return {"type": "about:blank", "title": title_of(self.status), "status": self.status, "detail": self.detail}


def title_of(status: int) -> str:
    """The status in words, as RFC 9457 asks for about:blank."""
    return HTTPStatus(status).phrase


def busy(detail: str) -> Problem:
    return Problem(503, detail, headers={"Retry-After": "1"})


def respond(problem: Problem) -> JSONResponse:
    """The problem as an answer."""
    return JSONResponse(problem.to_json(), problem.status, headers=problem.headers, media_type=MEDIA_TYPE)
