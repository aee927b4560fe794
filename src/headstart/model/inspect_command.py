"""`headstart inspect`: what the header of a model file holds. Knows neither tensors nor torch."""

import json
import math
from pathlib import Path
from typing import Any

from headstart.config_io import check_single_run
from headstart.errors import InputError
from headstart.model.header import PREFIX, check_fields, read_fields
from headstart.wording import listed, plural


def inspect_command(run: str, *, as_json: bool, tensors: bool = False) -> None:
    """Print the header of a model file. tensors: with the name, type and shape of each tensor, which JSON always has.

    Raises InputError."""
    check_single_run(Path(run))
    path = Path(run) / "model.safetensors" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a finished run folder or a model file")
    fields, header = read_fields(path)
    check_fields(fields, path)
    if as_json:
        other = {name: text for name, text in header.metadata.items() if not name.startswith(PREFIX)}
        found = {"path": str(path), "bytes": header.num_bytes, "metadata": fields, "other": other}
        print(json.dumps(found | {"tensors": header.tensors}, indent=2, ensure_ascii=False))
        return
    size = f"{header.num_bytes / 1e6:.1f} MB, {plural(len(header.tensors), 'tensor')}"
    count = sum(math.prod(entry["shape"]) for entry in header.tensors.values())
    print(f"{path}: {fields.get('backbone')}, {size}, {count:,} numbers")
    print("\n".join(f"{name}: {text}" for name, text in _described(fields).items()))
    if not tensors:
        return
    print("tensors:")
    for name, entry in header.tensors.items():
        print(f"  {name}  {entry['dtype']} {entry['shape']}")


def _described(fields: dict[str, Any]) -> dict[str, Any]:
    """One line for each group of fields, then the fields that are in none."""
    left = dict(fields)
    left.pop("backbone", None)  # in the first line
    classes, metrics = left.pop("classes"), left.pop("metrics", {})
    precision = left.pop("mixed_precision", None)
    computed = f"{left.pop('measured_on', None)}, {'fp32' if precision == 'no' else precision}"
    more = " (--json lists them)" if len(classes) > 20 else ""
    found = {
        f"classes, {len(classes)}": listed(classes, limit=20) + more,
        "preprocessing": _pairs(left.pop("preprocess", {})),
        "trained": f"{left.pop('strategy', None)} from {left.pop('weights', None)} weights, "
        f"seed {left.pop('seed', None)}",
        "evaluated": f"{_metrics(metrics)} ({computed}, batches of {left.pop('eval_batch_size', None)})",
        "calibration": _calibration(left.pop("calibration", None)),
        "golden inputs": _golden(left.pop("golden", None)),
        "data": f"manifest {left.pop('manifest_sha256', None)}",
        "versions": _pairs(left.pop("versions", {})),
    }
    return found | left


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _metrics(metrics: dict[str, Any]) -> str:
    val = metrics.get("val", {})
    if "accuracy" not in val:
        return "not yet"
    text = f"accuracy {100 * val['accuracy']:.1f}%, {val.get('correct')} of {val.get('n')}"
    if "accuracy_ci95" in val:
        low, high = val["accuracy_ci95"]
        text += f", 95% interval {100 * low:.1f}% to {100 * high:.1f}%"
    return text + (f", log loss {val['loss']:.4f}" if "loss" in val else "")


def _calibration(values: dict[str, Any] | None) -> str:
    if not values:
        return "none"
    text = f"temperature {values['temperature']:.3f} fitted on {values['n']} {values['fitted_on']}, prediction sets"
    limits = (values.get("open_set") or {}).get("limits", [])
    return text + (", none of these" if any(limit is not None for _, limit in limits) else "")


def _golden(values: dict[str, Any] | None) -> str:
    return ", ".join(entry["name"] for entry in values["inputs"]) + " (headstart verify)" if values else "none"
