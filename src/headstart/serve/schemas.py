"""What the HTTP API takes and returns as JSON. pydantic checks it and describes it in the OpenAPI document."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypeAliasType

MAX_TOP = 1000


def _typed(value: Any) -> Any:
    """A query parameter as a number or a boolean; other text stays a string, which strict validation refuses."""
    if not isinstance(value, str):
        return value
    return int(value) if re.fullmatch("[0-9]{1,4}", value) else {"true": True, "false": False}.get(value, value)


_Flag = Annotated[bool, BeforeValidator(_typed), Field(strict=True)]
_Probability = Annotated[float, Field(ge=0, le=1)]
ClassName = TypeAliasType("ClassName", str)


class _Strict(BaseModel):
    """Unknown fields are refused; the OpenAPI document says so."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_serialization_defaults_required=True)


class Options(_Strict):
    """The query parameters of /predict."""

    top: Annotated[int, BeforeValidator(_typed)] = Field(
        default=5, strict=True, ge=1, le=MAX_TOP, description="number of most probable classes to return"
    )
    gradcam: _Flag = Field(default=False, description="return the Grad-CAM map")
    preprocessed: _Flag = Field(default=False, description="return the preprocessed image")


class ClassProbability(_Strict):
    name: ClassName = Field(serialization_alias="class")
    probability: _Probability


class ImagePrediction(_Strict):
    name: str | None = Field(description="file name in the form")
    label: ClassName = Field(description="most probable class")
    probability: _Probability = Field(description="of that class; calibrated if the model file holds a calibration")
    top: tuple[ClassProbability, ...] = Field(description="most probable classes, in descending order")
    prediction_set: tuple[ClassName, ...] | None = Field(
        description="classes that contain the true one with the confidence of the calibration; null without calibration"
    )
    none_of_these: bool | None = Field(
        description="whether the image is unlike the training images; null without calibration, and if there were too "
        "few validation images for a limit"
    )
    gradcam: list[list[_Probability]] | None = Field(
        description="rows of a coarse map over the preprocessed image: 1 where the evidence for the label is "
        "strongest; null for a network whose last stage has no maps"
    )
    preprocessed: str | None = Field(description="the square image that the network received: a JPEG as a data URI")


class ProblemDetails(_Strict):
    """RFC 9457."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="the reason, in one sentence")


class ImageError(_Strict):
    name: str | None = Field(description="file name in the form")
    error: ProblemDetails


class Predictions(_Strict):
    results: list[ImagePrediction | ImageError] = Field(min_length=1, description="one per image, in order")


class Health(_Strict):
    status: Literal["ok"] = "ok"
    waiting: int = Field(description="requests that are being received or processed")
    bytes: int = Field(description="size of their bodies")
    predictions: int = Field(description="number of images classified since the start")


class ModelDescription(_Strict):
    classes: tuple[ClassName, ...]
    image_size: int = Field(description="side of the preprocessed image in pixels")
    backbone: str
    strategy: str
    accuracy: float | None = Field(description="on the validation images")
    calibrated: bool
    version: str = Field(description="of headstart")
