"""The HTTP API: its URLs, one function for each."""

import asyncio
from collections.abc import Awaitable
from functools import cached_property
from importlib.metadata import version
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from headstart.data.decode import EXTENSIONS
from headstart.serve.engine import Engine
from headstart.serve.guard import Guard
from headstart.serve.limits import Limits
from headstart.serve.pages import html_page
from headstart.serve.problems import Problem, respond
from headstart.serve.schemas import (
    MAX_TOP,
    Health,
    ImageError,
    ImagePrediction,
    ModelDescription,
    Options,
    Predictions,
)
from headstart.serve.uploads import Load, Upload, read_images

_T = TypeVar("_T")


def build_app(engine: Engine, *, limits: Limits, names: tuple[str, ...] = ()) -> ASGIApp:
    """names: host names to serve, besides those of this machine."""
    service = _Service(engine, limits)
    app = Starlette(
        routes=[
            Route("/", service.page),  # Route without methods: GET and HEAD
            Route("/predict", service.predict, methods=["POST"]),
            Route("/health", service.health),
            Route("/model", service.model),
            Route("/docs", service.docs),
            Route("/openapi.json", service.openapi),
        ],
        exception_handlers={HTTPException: _on_http_error, Exception: _on_failure},
    )
    app.router.redirect_slashes = False
    return Guard(app, names=names)


class _Service:
    """The state of the server, and one method per URL."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._load = Load(limits)
        self._predictions = 0
        info = engine.predictor.info
        accuracy = info.metrics.get("val", {}).get("accuracy")
        self._model = ModelDescription(  # without paths; the origin of the weights may be one
            classes=info.classes,
            image_size=info.preprocess.image_size,
            backbone=info.backbone,
            strategy=info.strategy,
            accuracy=accuracy if isinstance(accuracy, float) else None,
            calibrated=info.calibration is not None,
            version=version("headstart"),
        )

    @cached_property
    def _page(self) -> Response:
        return html_page("serve.html", model=self._model, limits=self._limits, extensions=",".join(sorted(EXTENSIONS)))

    @cached_property
    def _document(self) -> dict[str, Any]:
        from headstart.serve.openapi import document  # few clients need it

        return document(self._engine.predictor.classes, self._limits)

    async def page(self, request: Request) -> Response:
        return self._page

    async def docs(self, request: Request) -> Response:
        return html_page("serve_docs.html", document=self._document, origin=str(request.base_url))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def model(self, request: Request) -> Response:
        return _json(self._model)

    async def health(self, request: Request) -> Response:
        return _json(Health(waiting=self._load.requests, bytes=self._load.bytes, predictions=self._predictions))

    async def predict(self, request: Request) -> Response:
        options = _options(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "send the body without a Content-Encoding")
        seconds = f"{self._limits.seconds:g} seconds"
        with self._load.request() as add:
            uploads = await self._in_time(
                read_images(request, add, self._limits), Problem(408, f"the request did not arrive within {seconds}")
            )
            results = await self._in_time(
                asyncio.gather(*(self._result(upload, options) for upload in uploads)),
                Problem(504, f"processing took more than {seconds}"),
            )
        failed = [result.error for result in results if isinstance(result, ImageError)]
        if len(failed) == len(results):
            raise Problem(failed[0].status, failed[0].detail)
        self._predictions += len(results) - len(failed)
        return _json(Predictions(results=results))

    async def _in_time(self, work: Awaitable[_T], problem: Problem) -> _T:
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await work
        except TimeoutError:
            raise problem from None
        except ClientDisconnect:  # nobody reads it
            raise Problem(400, "the request broke off") from None

    async def _result(self, upload: Upload, options: Options) -> ImagePrediction | ImageError:
        try:
            return await self._engine.predict(upload, options)
        except Problem as problem:
            return ImageError(name=upload.name, error=problem.details)


def _options(request: Request) -> Options:
    given = request.query_params
    if len(given.multi_items()) > len(given):
        raise Problem(400, "a parameter is given twice")
    try:
        return Options.model_validate(dict(given))
    except ValidationError as error:
        name = error.errors()[0]["loc"][-1]
    if name not in Options.model_fields:
        raise Problem(400, "unknown parameter; the parameters are top, gradcam and preprocessed")
    raise Problem(400, f"{name} must be {f'a whole number from 1 to {MAX_TOP}' if name == 'top' else 'true or false'}")


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(by_alias=True), media_type="application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    """A Problem, or what the router raises."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Problem):
        return respond(error)
    details = {404: "there is nothing at this URL; GET /docs lists the URLs", 405: "this URL has other methods"}
    response = respond(Problem(error.status_code, details.get(error.status_code, "the request cannot be processed")))
    response.headers.update(error.headers or {})
    return response


async def _on_failure(request: Request, error: Exception) -> Response:
    return respond(Problem(500, "the server failed at this request; the reason is in its log"))
