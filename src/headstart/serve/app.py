"""The HTTP side: addresses, parameters, answers. One function per address."""

import asyncio
from collections.abc import Awaitable
from importlib.metadata import version
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from headstart.serve.engine import Answer, Engine, Options
from headstart.serve.guard import Guard
from headstart.serve.limits import Limits
from headstart.serve.openapi import document
from headstart.serve.pages import Page, docs_page, front_page
from headstart.serve.problems import Problem, respond
from headstart.serve.uploads import Room, Upload, read_images

_T = TypeVar("_T")

MAX_TOP = 1000


def build_app(engine: Engine, *, limits: Limits, names: tuple[str, ...] = ()) -> ASGIApp:
    """names: host names to answer to, besides those of this machine."""
    service = _Service(engine, limits)
    app = Starlette(
        routes=[
            Route("/", service.page, methods=["GET"]),
            Route("/predict", service.predict, methods=["POST"]),
            Route("/health", service.health, methods=["GET"]),
            Route("/model", service.model, methods=["GET"]),
            Route("/docs", service.docs, methods=["GET"]),
            Route("/openapi.json", service.openapi, methods=["GET"]),
        ],
        exception_handlers={Problem: _problem, HTTPException: _problem, Exception: _problem},
    )
    app.router.redirect_slashes = False
    return Guard(app, names=names)


class _Service:
    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._room = Room(limits)
        self._answered = 0
        self._description = describe(engine)
        self._document = document(classes=engine.predictor.classes, limits=limits, max_top=MAX_TOP)
        self._front = front_page(self._description, limits)

    async def page(self, request: Request) -> Response:
        return _html(self._front)

    async def docs(self, request: Request) -> Response:
        return _html(docs_page(self._document, str(request.base_url)))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._description)

    async def health(self, request: Request) -> Response:
        return JSONResponse(
            {"status": "ok", "waiting": self._room.requests, "bytes": self._room.bytes, "answered": self._answered}
        )

    async def predict(self, request: Request) -> Response:
        options = _options(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "send the body without a Content-Encoding")
        with self._room.enter() as visit:
            uploads = await self._in_time(
                read_images(
                    request.headers.get("content-type", ""),
                    request.headers.get("content-length", ""),
                    request.stream(),
                    visit=visit,
                    limits=self._limits,
                ),
                Problem(408, f"the request did not arrive within {self._limits.seconds:g} seconds"),
            )
            results = await self._in_time(
                asyncio.gather(*(self._result(upload, options) for upload in uploads)),
                Problem(504, f"there was no answer within {self._limits.seconds:g} seconds"),
            )
        refused = [result["error"] for result in results if "error" in result]
        if len(refused) == len(results):
            return respond(Problem(refused[0]["status"], refused[0]["detail"]))
        self._answered += len(results) - len(refused)
        return JSONResponse({"results": results})

    async def _in_time(self, work: Awaitable[_T], problem: Problem) -> _T:
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await work
        except TimeoutError:
            raise problem from None
        except ClientDisconnect:  # nobody is there to read it
            raise Problem(400, "the request broke off") from None

    async def _result(self, upload: Upload, options: Options) -> dict[str, Any]:
        try:
            answer = await self._engine.answer(upload.data, options)
        except Problem as problem:
            return {"name": upload.name, "error": problem.to_json()}
        return {"name": upload.name, **_answer_json(answer)}


def describe(engine: Engine) -> dict[str, Any]:
    """The model for /model and the page: no path, no weights' origin, which may be one."""
    info = engine.predictor.info
    accuracy = info.metrics.get("val", {}).get("accuracy")
    return {
        "classes": list(info.classes),
        "image_size": info.preprocess.image_size,
        "backbone": info.backbone,
        "strategy": info.strategy,
        "accuracy": accuracy if isinstance(accuracy, float) else None,
        "calibrated": engine.calibrated,
        "version": version("headstart"),
    }


def _answer_json(answer: Answer) -> dict[str, Any]:
    said = answer.prediction
    return {
        "label": said.label,
        "probability": said.probability,
        "top": [{"class": name, "probability": probability} for name, probability in said.top],
        "prediction_set": None if said.prediction_set is None else list(said.prediction_set),
        "none_of_these": said.none_of_these,
        "gradcam": answer.heat,
        "view": answer.view,
    }


def _options(request: Request) -> Options:
    """Raises Problem 400 for a parameter that is unknown, double or not what it should be."""
    found: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name in found:
            raise Problem(400, "a parameter is given twice")
        if name == "top":
            if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_TOP):
                raise Problem(400, f"top must be a number from 1 to {MAX_TOP}")
            found[name] = int(text)
        elif name in ("gradcam", "view"):
            if text not in ("true", "false"):
                raise Problem(400, f"{name} must be true or false")
            found[name] = text == "true"
        else:
            raise Problem(400, "an unknown parameter; there are top, gradcam and view")
    return Options(**found)


def _html(page: Page) -> Response:
    return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return respond(error)
    if isinstance(error, HTTPException):
        status = error.status_code
        detail = {
            404: "there is nothing at this address; GET /docs tells what there is",
            405: "this address has other methods",
        }
        headers = dict(error.headers or {})
        return respond(Problem(status, detail.get(status, "the request cannot be answered"), headers=headers))
    return respond(Problem(500, "the server failed at this request; its log says why"))
