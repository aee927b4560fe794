"""The header of a model file: our fields in the metadata of a safetensors file, each a JSON text. Knows no torch."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.errors import InputError
from headstart.tensor_file import MALFORMED, Header, read_header

PREFIX = "headstart."
"""Of the names of our fields."""


def encode_fields(fields: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of JSON texts; the same fields give the same bytes."""
    return {PREFIX + name: json.dumps(value, ensure_ascii=False, sort_keys=True) for name, value in fields.items()}


def read_fields(path: Path) -> tuple[dict[str, Any], Header]:
    """Our fields by name, not checked yet, and the whole header. Raises InputError."""
    try:
        header = read_header(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read as safetensors: {reason}") from None
    ours = {name.removeprefix(PREFIX): text for name, text in header.metadata.items() if name.startswith(PREFIX)}
    if "classes" not in ours:
        raise InputError(f"{path} is not a headstart model (no classes in its header); name a run folder")
    try:
        return {name: json.loads(text) for name, text in ours.items()}, header
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header is damaged ({error}); train again or use a copy") from None


def check_fields(fields: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for the first of our fields that is not of the kind that we write; of those that are there."""
    for name, (wanted, fits) in FIELDS.items():
        try:
            correct = name not in fields or fits(fields[name])
        except MALFORMED:  # another kind further inside
            correct = False
        if not correct:
            text = ascii(fields[name])
            raise InputError(
                f"{path}: the field {name} of the header is {text if len(text) <= 60 else text[:57] + '...'} and must "
                f"be {wanted}; the file was altered or damaged, use a copy of it"
            )


def class_codes(classes: Sequence[str]) -> dict[str, Any]:
    """The class names as transformers has them in config.json."""
    return {
        "id2label": {str(code): name for code, name in enumerate(classes)},
        "label2id": {name: code for code, name in enumerate(classes)},
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) == len(set(value)) >= 1 and all(map(_is_text, value))


def _is_preprocess(value: Any) -> bool:
    optional = [value.get(name) or 1 for name in ("jpeg_min_side", "train_short_side")]
    sides = [value["image_size"], value["resize_size"], *optional]
    colours = [value.get(name, [1.0] * 3) for name in ("mean", "std")]
    numbers = [number for three in colours for number in three]
    three_each = all(isinstance(three, list) and len(three) == 3 for three in colours) and all(map(_is_number, numbers))
    return isinstance(value, dict) and all(map(_is_count, sides)) and three_each and min(colours[1]) > 0


def _are_metrics(value: Any) -> bool:
    val = value.get("val", {})
    numbers = [val[name] for name in ("accuracy", "loss") if name in val]
    low_high = val.get("accuracy_ci95", [0.0, 1.0])
    return isinstance(value, dict) and len(low_high) == 2 and all(map(_is_number, [*numbers, *low_high]))


def _is_calibration(value: Any) -> bool:
    if value is None:
        return True
    warm = _is_number(value["temperature"]) and 0 < value["temperature"] < math.inf
    parts = isinstance(value["conformal"], dict) and isinstance(value["open_set"], dict | None)
    return warm and _is_count(value["n"]) and isinstance(value["fitted_on"], str) and parts


def _is_golden(value: Any) -> bool:
    if value is None:
        return True
    inputs = value["inputs"]
    named = isinstance(inputs, list) and all(isinstance(entry["name"], str) for entry in inputs)
    return _are_names(value["classes"]) and named


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "classes": ("a list of different names", _are_names),
    "preprocess": ("sizes in whole px, and mean and std of three colours, std above 0", _is_preprocess),
    **dict.fromkeys(("backbone", "strategy", "weights"), ("a name", _is_text)),
    "mixed_precision": ("no, bf16 or fp16", lambda value: value in ("no", "bf16", "fp16")),
    "channels_last": ("true or false", lambda value: isinstance(value, bool)),
    "eval_batch_size": ("a whole number of at least 1", _is_count),
    "measured_on": ("network or feature bank", lambda value: value in ("network", "feature bank")),
    "manifest_sha256": ("a hash", _is_text),
    **dict.fromkeys(
        ("weights_sha256", "tensors_sha256"), ("a hash or null", lambda value: value is None or _is_text(value))
    ),
    "seed": ("a whole number", lambda value: type(value) is int),
    "versions": ("names with versions", lambda value: all(map(_is_text, value.values()))),
    "metrics": ("metrics by split", _are_metrics),
    "calibration": ("a temperature above 0, conformal limits and distances, or null", _is_calibration),
    "golden": ("classes and a list of inputs, or null", _is_golden),
}
"""What each field must be, in words and as a check."""
