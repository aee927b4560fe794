"""The OpenAPI 3.1 document, with this server's limits and classes in it. The schemas are those of `schemas.py`."""

from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from headstart.serve.limits import Limits
from headstart.serve.problems import MEDIA_TYPE
from headstart.serve.schemas import Health, ModelDescription, Options, Predictions, ProblemDetails
from headstart.wording import plural

_REFUSALS = {
    400: "invalid parameters or form",
    403: "the page of another site sent the request",
    408: "the request did not arrive in time",
    413: "the request or the image is too large",
    415: "unsupported content type",
    421: "the server does not serve this host name",
    422: "the image cannot be decoded",
    500: "the server failed",
    503: "too many requests are waiting; Retry-After gives the seconds to wait",
    504: "processing took too long",
}


def document(classes: Sequence[str], limits: Limits) -> dict[str, Any]:
    """JSON-ready."""
    schemas = models_json_schema(
        [(model, "serialization") for model in (Predictions, Health, ModelDescription, ProblemDetails)],
        ref_template=_reference("{model}")["$ref"],
    )[1]["$defs"]
    schemas["ClassName"]["enum"] = list(classes)
    health, model = "Whether the server runs, and its load", "Description of the model"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "headstart serve",
            "version": version("headstart"),
            "description": "Send images, get classes with probabilities. Every error is a problem object (RFC 9457) "
            "whose detail is one sentence.",
        },
        "paths": {
            "/predict": {"post": _predict(limits)},
            "/health": {"get": _operation("health", health, health, "Health", (403, 421))},
            "/model": {"get": _operation("model", model, model, "ModelDescription", (403, 421))},
        },
        "components": {"schemas": schemas},
    }


def _predict(limits: Limits) -> dict[str, Any]:
    result = "A prediction or an error per image, in order"
    file = {"schema": {"type": "string", "format": "binary"}}
    images = {"type": "array", "minItems": 1, "maxItems": limits.images, "items": file["schema"]}
    form = {"schema": {"type": "object", "properties": {"image": images}, "required": ["image"]}}
    return {
        **_operation("predict", "Classify images", result, "Predictions", tuple(_REFUSALS)),
        "description": f"The body is one image, or a form of at most {plural(limits.images, 'file')} called image, "
        f"nothing else. At most {limits.megabytes} MiB in a request, {limits.megapixels} megapixels in an image. "
        "Of several images, those that cannot be read have an error instead of a prediction; if all fail, so does the "
        "request.",
        "parameters": [
            {"name": name, "in": "query", "description": schema["description"], "schema": schema}
            for name, schema in Options.model_json_schema()["properties"].items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": file, "image/*": file, "multipart/form-data": form},
        },
    }


def _operation(name: str, summary: str, result: str, schema: str, refusals: Sequence[int]) -> dict[str, Any]:
    problem = {MEDIA_TYPE: {"schema": _reference("ProblemDetails")}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": result, "content": {"application/json": {"schema": _reference(schema)}}},
            **{
                str(status): {"description": f"{HTTPStatus(status).phrase}: {_REFUSALS[status]}", "content": problem}
                for status in refusals
            },
        },
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
