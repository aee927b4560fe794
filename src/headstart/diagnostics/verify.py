"""`headstart verify`: check that this machine reproduces the reference outputs of a model file."""

from pathlib import Path

import torch

from headstart.errors import InputError
from headstart.model.find_model import find_model
from headstart.model.golden_inputs import TOLERANCE, compare
from headstart.model.model_file import hash_of, load_tensors
from headstart.predict.predictor import Predictor
from headstart.results import GoldenCheck, Verification
from headstart.runtime.accelerator import versions

NAMES = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def verify(run: str | Path, *, device: str | torch.device | None = None, precision: str | None = None) -> Verification:
    """Compute the golden inputs of a model file on this machine, and compare with the stored results.

    precision: None for fp32 and the precision that `predict` uses. Raises InputError if the file contains no golden
    inputs."""
    path = find_model(run)
    tensors, info = load_tensors(path)
    golden = info.golden
    if golden is None:
        raise InputError(
            f"{path} contains no golden inputs: the run is not finished, or from an earlier version of headstart; "
            "train again, or evaluate it"
        )
    unchanged = None if info.tensors_sha256 is None else hash_of(tensors) == info.tensors_sha256
    checks: dict[str, tuple[GoldenCheck, ...]] = {}
    for wanted in ("fp32", "measured") if precision is None else (precision,):
        predictor = Predictor(path, device=device, precision=wanted)
        if NAMES[predictor.precision] in checks:
            continue
        tf32 = predictor.device.type == "cuda" and predictor.precision == "no" and torch.backends.cudnn.allow_tf32
        try:
            found = compare(
                golden,
                classes=predictor.classes,
                spec=predictor.info.preprocess,
                tolerance=TOLERANCE["tf32" if tf32 else predictor.precision],
                logits_of=lambda pixels, predictor=predictor: predictor.compute(pixels).logits,  # type: ignore[misc]
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path} cannot be verified: {error}") from None
        checks[NAMES[predictor.precision]] = tuple(found)
    return Verification(
        model=str(path),
        device=str(predictor.device),
        versions=versions(),
        written_with=dict(predictor.info.versions),
        checks=checks,
        tensors_unchanged=unchanged,
    )
