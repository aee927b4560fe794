"""Errors as problem details (RFC 9457), worded here: messages of libraries may contain paths or names of objects."""

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from headstart.serve.schemas import ProblemDetails

MEDIA_TYPE = "application/problem+json"


class Problem(HTTPException):
    """detail: one sentence that anybody may read. 503 asks the client to try again in a second."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail, {"Retry-After": "1"} if status == 503 else None)

    @property
    def details(self) -> ProblemDetails:
        return ProblemDetails(title=HTTPStatus(self.status_code).phrase, status=self.status_code, detail=self.detail)


def respond(problem: Problem) -> Response:
    body = problem.details.model_dump_json()
    return Response(body, problem.status_code, headers=problem.headers, media_type=MEDIA_TYPE)
