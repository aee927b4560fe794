"""The OpenAPI 3.1 document: what the API promises, with this server's limits and classes in it."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from headstart.serve.limits import Limits
from headstart.serve.problems import MEDIA_TYPE, title_of

_TEXT, _NUMBER, _BOOLEAN = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}


def document(*, classes: Sequence[str], limits: Limits, max_top: int) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "headstart serve",
            "version": version("headstart"),
            "description": "Send images, get classes with probabilities. Every error is a problem object (RFC 9457) whose detail is one sentence.",
        },
        "paths": {
            "/predict": {"post": _predict(limits, max_top)},
            "/health": {"get": _get("health", "Whether the server answers, and how much waits", "Health")},
            "/model": {"get": _get("model", "What is served", "Model")},
        },
        "components": {"schemas": _schemas(classes)},
    }


def _predict(limits: Limits, max_top: int) -> dict[str, Any]:
    at_most = f"At most {limits.megabytes} MiB in a request, {limits.megapixels} megapixels in an image."
    file = {"type": "string", "format": "binary"}
    return {
        "operationId": "predict",
        "summary": "Classify images",
        "description": f"The body is one image, or a form of at most {limits.images} files called image and of nothing else. {at_most} Of several images, those that cannot be read have an "
        "error instead of an answer; if that is all of them, so has the request.",
        "parameters": [
            _parameter("top", "how many of the most probable classes", {"type": "integer", "minimum": 1, "maximum": max_top, "default": 5}),
            _parameter("gradcam", "whether to say where the model looked", {**_BOOLEAN, "default": False}),
            _parameter("view", "whether to send back the pixels that the model saw, as a JPEG in a data URI", {**_BOOLEAN, "default": False}),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": file},
                "image/*": {"schema": file},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"image": {"type": "array", "minItems": 1, "maxItems": limits.images, "items": file}},
                        "required": ["image"],
                    }
                },
            },
        },
        "responses": {
            "200": _answer("An answer or an error per image, in order", "Answers"),
            **{str(status): _refusal(status, why) for status, why in _REFUSALS},
        },
    }  # fmt: skip


_REFUSALS = (
    (400, "The parameters or the form are not what they should be"),
    (403, "The page of another site sent the request"),
    (408, "The request did not arrive in time"),
    (413, "The request or the image is too large"),
    (415, "The body is of a type that is not read"),
    (421, "The server does not answer to this name"),
    (422, "The image cannot be decoded"),
    (500, "The server failed"),
    (503, "Too many requests wait; Retry-After says when to come back"),
    (504, "There was no answer in time"),
)


def _schemas(classes: Sequence[str]) -> dict[str, Any]:
    name = {"type": "string", "enum": list(classes)}
    optional = {"type": ["string", "null"]}
    answer = {
        "name": {**optional, "description": "of the file in the form"},
        "label": {**name, "description": "the most probable class"},
        "probability": {**_PROBABILITY, "description": "of that class; calibrated if the model file has a calibration"},
        "top": {
            "type": "array",
            "description": "the most probable first",
            "items": _object({"class": name, "probability": _PROBABILITY}),
        },
        "prediction_set": {
            "type": ["array", "null"],
            "items": name,
            "description": "the classes that the true one is among, as often as the calibration promises; null without a calibration",
        },
        "none_of_these": {
            "type": ["boolean", "null"],
            "description": "whether the image is unlike all that the model knows; null without a calibration",
        },
        "gradcam": {
            "type": ["array", "null"],
            "items": {"type": "array", "items": _PROBABILITY},
            "description": "rows of a coarse map over the view, 1 where most speaks for the label",
        },
        "view": {**optional, "description": "the square that the model saw: a JPEG in a data URI"},
    }
    problem = {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT}
    refused = {"name": answer["name"], "error": _reference("Problem")}
    return {
        "Answers": _object({"results": {"type": "array", "minItems": 1, "items": {"anyOf": [_reference("Answer"), _reference("Refused")]}}}),
        "Answer": _object(answer),
        "Refused": _object(refused),
        "Problem": _object(problem),
        "Health": _object(
            {
                "status": {"const": "ok"},
                "waiting": {"type": "integer", "description": "requests that are being received or wait for their answer"},
                "bytes": {"type": "integer", "description": "that they hold"},
                "answered": {"type": "integer", "description": "images, since the start"},
            }
        ),
        "Model": _object(
            {
                "classes": {"type": "array", "items": name},
                "image_size": {"type": "integer"},
                "backbone": _TEXT,
                "strategy": _TEXT,
                "accuracy": {"type": ["number", "null"]},
                "calibrated": _BOOLEAN,
                "version": _TEXT,
            }
        ),
    }  # fmt: skip


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _answer(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _reference(schema)}}}


def _refusal(status: int, why: str) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": _reference("Problem")}}
    return {"description": f"{title_of(status)}: {why[0].lower()}{why[1:]}", "content": content}


def _get(operation: str, summary: str, schema: str) -> dict[str, Any]:
    refused = {str(status): _refusal(status, why) for status, why in _REFUSALS if status in (403, 421)}
    return {"operationId": operation, "summary": summary, "responses": {"200": _answer(summary, schema), **refused}}
