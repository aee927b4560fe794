"""`headstart verify`: check that this machine reproduces the reference outputs of a model file."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headstart.errors import InputError
from headstart.model.golden_inputs import TOLERANCE, Comparison, compare
from headstart.model.model_file import find_model, hash_of, load_tensors
from headstart.predict.predictor import Predictor
from headstart.runtime.accelerator import set_threads, versions

NAMES = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def verify(run: str | Path, *, device: str | None = None, precision: str | None = None) -> dict[str, Any]:
    """Compute the golden inputs of a model file on this machine, and compare with the stored results.

    precision: None for fp32 and the precision that `predict` uses. The result has the keys model; device; versions,
    here and of the file; checks, by precision a list with one Comparison per golden input; tensors, whether they are
    unchanged, None where the file has no hash of them; passed, whether everything did. Raises InputError if the file
    contains no golden inputs."""
    path = find_model(run)
    tensors, info = load_tensors(path)
    golden = info.golden
    if golden is None:
        raise InputError(
            f"{path} contains no golden inputs: the run is not finished, or from an earlier version of headstart; "
            "train again, or evaluate it"
        )
    unchanged = None if info.tensors_sha256 is None else hash_of(tensors) == info.tensors_sha256
    checks: dict[str, list[Comparison]] = {}
    for wanted in ("fp32", "measured") if precision is None else (precision,):
        predictor = Predictor(path, device=device, precision=wanted)
        if NAMES[predictor.precision] in checks:
            continue
        try:
            checks[NAMES[predictor.precision]] = compare(
                golden,
                classes=predictor.classes,
                spec=predictor.info.preprocess,
                tolerance=TOLERANCE["tf32" if _multiplies_in_tf32(predictor) else predictor.precision],
                logits_of=lambda pixels, predictor=predictor: predictor.compute(pixels).logits,  # type: ignore[misc]
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path} cannot be verified: {error}") from None
    return {
        "model": str(path),
        "device": str(predictor.device),
        "versions": {"here": versions(), "then": dict(predictor.info.versions)},
        "checks": checks,
        "tensors": unchanged,
        "passed": unchanged is not False and all(check.passed for found in checks.values() for check in found),
    }


def _multiplies_in_tf32(predictor: Predictor) -> bool:
    import torch

    return predictor.precision == "no" and predictor.device.type == "cuda" and bool(torch.backends.cudnn.allow_tf32)


def verify_command(run: str, *, device: str | None, precision: str | None, as_json: bool) -> bool:
    """Print the results; return whether everything passed."""
    set_threads(None)
    found = verify(run, device=device, precision=precision)
    if as_json:
        import json

        plain = {name: [asdict(c) | {"passed": c.passed} for c in checks] for name, checks in found["checks"].items()}
        print(json.dumps({**found, "checks": plain}, indent=2))
    else:
        _print(found)
    return bool(found["passed"])


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else 130
    console = Console(markup=False, emoji=False, highlight=False, width=width)
    here, then = found["versions"]["here"], found["versions"]["then"]
    console.print(f"{found['model']} on {found['device']}")
    console.print(
        ", ".join(
            f"{name} {here[name]}"
            + ("" if then.get(name) == here[name] else f" (written with {then.get(name, 'unknown')})")
            for name in ("headstart", "torch", "pillow", "numpy", "python")
        )
    )
    table = Table("precision", "golden input", "image", "pixels", "largest difference", "tolerance", "")
    for precision, checks in found["checks"].items():
        for check in checks:
            drawing = check.drawing
            table.add_row(
                precision,
                drawing.name,
                f"{drawing.width}x{drawing.height} {drawing.mode} {drawing.format}",
                "same" if check.transform else "differ" if check.decoded else "decoded differently",
                f"{check.difference:.2g}",
                f"{check.tolerance:.2g}",
                "pass" if check.passed else "FAIL",
            )
    console.print(table)
    tensors = {None: "not checked, the file has no hash of them", True: "unchanged", False: "FAIL, changed"}
    console.print(f"tensors: {tensors[found['tensors']]}")
    for precision, checks in found["checks"].items():
        worst = max(checks, key=lambda check: check.difference / check.tolerance)
        console.print(
            f"{precision}: {'pass' if all(check.passed for check in checks) else 'FAIL'}, largest difference of a "
            f"logit {worst.difference:.2g} ({worst.drawing.name}), tolerance {worst.tolerance:.2g}"
        )
    broken = [check for checks in found["checks"].values() for check in checks if not check.passed]
    if any(check.decoded and not check.transform for check in broken):
        console.print("the images are decoded as before, but transformed differently: resize, crop or channels differ")
    elif any(not check.decoded for check in broken):
        console.print("the images are decoded differently than when the file was written")
    elif broken:
        console.print("the input is the same, but the logits differ: weights, class order or arithmetic differ")
