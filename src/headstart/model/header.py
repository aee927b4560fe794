"""`headstart inspect`: what a model file says of itself. Reads the header alone, and knows neither tensors nor torch."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headstart.errors import InputError

PREFIX = "headstart."
LARGEST_BYTES = 100_000_000  # of a header; the safetensors library has the same limit
LEFT_OUT = ("golden", "calibration")  # long lists of numbers: said in a line
DAMAGE = (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError)
"""What reading an altered header may raise."""


def read_header(path: Path) -> dict[str, Any]:
    """metadata: our fields by name; other: those of others; tensors: name -> dtype and shape. Raises InputError."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= LARGEST_BYTES:
                raise ValueError("it does not begin with the length of a header")
            header = json.loads(file.read(length).decode("utf-8"))
            size = file.seek(0, 2)
        metadata = header.pop("__metadata__", {})
        tensors = {name: {"dtype": entry["dtype"], "shape": entry["shape"]} for name, entry in header.items()}
        odd = next((name for name, entry in tensors.items() if not _is_shape(entry["shape"])), None)
        if odd is not None:
            raise ValueError(f"the shape of {odd} is none")
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != end:
            raise ValueError(f"it has {size} bytes and should have {end}")
        ours = {n.removeprefix(PREFIX): json.loads(text) for n, text in metadata.items() if n.startswith(PREFIX)}
    except (OSError, *DAMAGE) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} cannot be read as a model file: {reason}") from None
    if "classes" not in ours:
        raise InputError(f"{path} holds no headstart model (no class names in its header); name a run folder")
    check_fields(ours, path)
    other = {name: text for name, text in metadata.items() if not name.startswith(PREFIX)}
    return {"path": str(path), "bytes": size, "metadata": ours, "other": other, "tensors": tensors}


def check_fields(fields: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for the first of our fields that is not of the kind that we write; of those that are there."""
    for name, (wanted, fits) in FIELDS.items():
        try:
            right = name not in fields or fits(fields[name])
        except DAMAGE:  # another kind further inside
            right = False
        if not right:
            text = ascii(fields[name])
            raise InputError(
                f"{path}: the field {name} of the header is {text if len(text) <= 60 else text[:57] + '...'} and must be {wanted}; "
                "the file was altered or damaged, use a copy of it"
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_count(value: Any, *, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _is_number(value: Any) -> bool:
    return (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value))


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(_is_count(side, least=0) for side in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) == len(set(value)) >= 1 and all(map(_is_text, value))


def _is_preprocess(value: Any) -> bool:
    sides = [value["image_size"], value["resize_size"], value.get("jpeg_min_side") or 1]
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
    return (
        _are_names(value["classes"])
        and isinstance(value["inputs"], list)
        and all(isinstance(entry["name"], str) for entry in value["inputs"])
    )


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "classes": ("a list of different names", _are_names),
    "preprocess": ("sizes in whole px, and mean and std of three colours, std above 0", _is_preprocess),
    "backbone": ("a name", _is_text),
    "strategy": ("a name", _is_text),
    "mixed_precision": ("no, bf16 or fp16", lambda value: value in ("no", "bf16", "fp16")),
    "channels_last": ("true or false", lambda value: isinstance(value, bool)),
    "eval_batch_size": ("a whole number of at least 1", _is_count),
    "measured_on": ("network or feature bank", lambda value: value in ("network", "feature bank")),
    "manifest_sha256": ("a hash", _is_text),
    "weights": ("a name", _is_text),
    "weights_sha256": ("a hash or null", lambda value: value is None or _is_text(value)),
    "tensors_sha256": ("a hash or null", lambda value: value is None or _is_text(value)),
    "seed": ("a whole number", lambda value: type(value) is int),
    "versions": ("names with versions", lambda value: all(map(_is_text, value.values()))),
    "metrics": ("measurements by split", _are_metrics),
    "calibration": ("a temperature above 0, conformal limits and distances, or null", _is_calibration),
    "golden": ("classes and a list of inputs, or null", _is_golden),
}
"""What each field must be, in words and as a check."""


def inspect_command(run: str, *, as_json: bool) -> None:
    """Raises InputError."""
    path = Path(run) / "model.safetensors" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a finished run folder or a model file")
    found = read_header(path)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else describe(found))


def describe(found: dict[str, Any]) -> str:
    """Lines for a person."""
    ours, tensors = found["metadata"], found["tensors"]
    numbers = sum(_count(entry["shape"]) for entry in tensors.values())
    spec = dict(ours.get("preprocess", {}))
    lines = [
        f"{found['path']}: {ours.get('backbone', '?')}, {found['bytes'] / 1e6:.1f} MB, {len(tensors)} tensors, {numbers:,} numbers",
        _classes(ours["classes"]),
        f"preprocessing: {', '.join(f'{name} {value}' for name, value in spec.items())}",
        f"trained: {ours.get('strategy')} from {ours.get('weights')} weights, seed {ours.get('seed')}",
        f"measured: {_measured(ours.get('metrics', {}))} ({ours.get('measured_on')}, "
        f"{'fp32' if ours.get('mixed_precision') == 'no' else ours.get('mixed_precision')}, batches of {ours.get('eval_batch_size')})",
        f"calibration: {_calibration(ours.get('calibration'))}",
        f"golden inputs: {_golden(ours.get('golden'))}",
        f"data: manifest {ours.get('manifest_sha256')}",
        f"versions: {', '.join(f'{name} {value}' for name, value in ours.get('versions', {}).items())}",
    ]
    known = {"backbone", "classes", "preprocess", "strategy", "weights", "seed", "metrics", "measured_on", "mixed_precision",
             "eval_batch_size", "manifest_sha256", "versions", *LEFT_OUT}  # fmt: skip
    lines += [f"{name}: {value}" for name, value in ours.items() if name not in known]
    lines.append("tensors:")
    lines += [f"  {name}  {entry['dtype']} {entry['shape']}" for name, entry in tensors.items()]
    return "\n".join(lines)


def _classes(classes: list[str]) -> str:
    shown = ", ".join(classes[:20]) + (
        f" and {len(classes) - 20} more (--json lists them)" if len(classes) > 20 else ""
    )
    return f"classes, {len(classes)}: {shown}"


def _measured(metrics: dict[str, Any]) -> str:
    val = metrics.get("val", {})
    if "accuracy" not in val:
        return "not yet"
    text = f"accuracy {100 * val['accuracy']:.1f} %, {val.get('correct')} of {val.get('n')}"
    if "accuracy_ci95" in val:
        low, high = val["accuracy_ci95"]
        text += f", 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return text + (f", log loss {val['loss']:.4f}" if "loss" in val else "")


def _calibration(values: dict[str, Any] | None) -> str:
    if not values:
        return "none"
    text = f"temperature {values.get('temperature', 0):.3f} fitted on {values.get('n')} {values.get('fitted_on')}, prediction sets"
    return text + (", none of these" if values.get("open_set") else "")


def _golden(values: dict[str, Any] | None) -> str:
    return ", ".join(entry["name"] for entry in values["inputs"]) + " (headstart verify)" if values else "none"


def _count(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product
