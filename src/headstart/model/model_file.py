"""The self-describing model file: tensors under torchvision's keys, everything else in its header."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from headstart.data.transforms import Preprocess
from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.model.calibration import Calibration
from headstart.model.frozen_trunk import BACKBONE, FEATURES, shapes, unusable
from headstart.model.header import DAMAGE, check_fields

if TYPE_CHECKING:  # imports torchvision, which a run on cached features does without
    from headstart.model.classifier import Classifier

SCHEMA = 1
_PREFIX = "headstart."  # of our keys in the safetensors header, whose values are JSON


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Everything that prediction needs besides the tensors, and where the model comes from."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    strategy: str
    mixed_precision: str
    channels_last: bool
    eval_batch_size: int
    measured_on: str  # "network", or "feature bank": folded trunk and float64 head, which differ from it by rounding
    manifest_sha256: str
    weights: str  # imagenet, bundled, none, or the name of a file without its folder
    weights_sha256: str | None
    seed: int
    versions: Mapping[str, str]
    metrics: Mapping[str, Any]
    calibration: Calibration | None = None  # None until the run has ended, and in files of before there was any
    golden: Mapping[str, Any] | None = None  # of model/golden_inputs.py; None until the run has ended
    tensors_sha256: str | None = dataclasses.field(default=None, compare=False)  # written by save_model_tensors
    backbone: str = BACKBONE
    schema: int = SCHEMA


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """safetensors, atomically; the same tensors and metadata give the same bytes (the library's header does not)."""
    plain = {name: value.detach().to("cpu", copy=False).contiguous() for name, value in tensors.items()}
    blob = save(plain, metadata={"format": "pt", **metadata})
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    canonical = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    canonical += b" " * (-len(canonical) % 8)

    def write(staging: Path) -> None:
        with staging.open("wb") as out:
            out.write(len(canonical).to_bytes(8, "little") + canonical)
            out.write(memoryview(blob)[8 + length :])

    write_atomically(path, write)


def save_model(path: Path, model: "Classifier", info: ModelInfo) -> None:
    """Write the model file: fp32 tensors under torchvision's keys, `info` in the header."""
    save_model_tensors(path, model.state_dict(), info)


def save_model_tensors(path: Path, tensors: Mapping[str, torch.Tensor], info: ModelInfo) -> None:
    """save_model for who has a state dict and no network."""
    fields = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    fields["preprocess"] = info.preprocess.to_json()
    fields["tensors_sha256"] = hash_of(tensors)
    fields["calibration"] = None if info.calibration is None else info.calibration.to_json()
    metadata = {_PREFIX + name: json.dumps(value, ensure_ascii=False, sort_keys=True) for name, value in fields.items()}
    save_tensors(path, tensors, metadata)


def hash_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the bytes of all tensors, by their names in order."""
    digest = hashlib.sha256()
    for _, value in sorted(tensors.items()):
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def read_info(path: Path) -> ModelInfo:
    """The header of a model file; tensors are not read. Raises InputError if it is not one of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from None
    ours = {name.removeprefix(_PREFIX): text for name, text in header.items() if name.startswith(_PREFIX)}
    try:
        fields = {name: json.loads(text) for name, text in ours.items()}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header is damaged ({error}); train again or use a copy") from None
    if not fields:
        raise InputError(f"{path} holds no headstart model (no class names in its header); name a run folder")
    if fields.get("schema") != SCHEMA:
        raise InputError(f"{path} is of schema {fields.get('schema')}, this version reads {SCHEMA}; update headstart")
    fields.setdefault("calibration", None)
    fields.setdefault("golden", None)
    fields.setdefault("tensors_sha256", None)
    known = {field.name for field in dataclasses.fields(ModelInfo)}
    if set(fields) != known:
        odd = sorted(set(fields) ^ known)
        raise InputError(f"{path}: the header does not match this version of headstart ({', '.join(odd)})")
    preprocess = fields["preprocess"]
    if isinstance(preprocess, dict):  # first: it names what another version asks for
        preprocess = Preprocess.from_json(preprocess)
    check_fields(fields, path)
    fields["classes"] = tuple(fields["classes"])
    fields["preprocess"] = preprocess
    fields["weights"] = Path(fields["weights"]).name  # files of before held the whole path
    if fields["calibration"] is not None:
        try:
            fields["calibration"] = Calibration.from_json(fields["calibration"])
            known_features = fields["calibration"].open_set
            if known_features is not None:
                count, width = known_features.reference.shape
                if width != FEATURES or not 1 <= known_features.neighbour <= count:
                    raise ValueError(f"{count} reference features of {width} numbers")
        except DAMAGE as error:
            raise InputError(
                f"{path}: the calibration in the header is damaged ({error}); train again or use a copy"
            ) from None
    return ModelInfo(**fields)


def load_model(path: Path) -> "tuple[Classifier, ModelInfo]":
    """A model file as a network in eval mode, and its header. Raises InputError if it does not fit."""
    from headstart.model.classifier import Classifier

    tensors, info = load_tensors(path)
    with torch.device("meta"):
        model = Classifier(len(info.classes))
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval(), info


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    """The tensors of a model file by torchvision's names, and its header. Raises InputError if they do not fit."""
    info = read_info(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    wanted = shapes() | {"fc.weight": (len(info.classes), FEATURES), "fc.bias": (len(info.classes),)}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        told = ", ".join(
            f"{name} is {found.get(name, 'missing')}, wanted {wanted.get(name, 'none')}" for name in odd[:3]
        )
        raise InputError(f"{path} does not fit a {info.backbone} with {len(info.classes)} classes: {told}")
    for name, value in tensors.items():
        written = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        if value.dtype != written:
            kinds = [str(dtype).removeprefix("torch.") for dtype in (value.dtype, written)]
            raise InputError(f"{path}: {name} is {kinds[0]} and must be {kinds[1]}; use another copy of this file")
    if reason := unusable(tensors):
        raise InputError(f"{path}: {reason}; train again or use another copy of this file")
    return tensors, info


def find_model(run: str | Path) -> Path:
    """The model file that a run folder or a path names. Raises InputError."""
    if not isinstance(run, str | os.PathLike):
        raise InputError(f"the run is {run!r}; name a run folder or a model.safetensors")
    path = Path(run)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            raise InputError(f"{run} has no model.safetensors; name a finished run folder or a model file")
    elif not path.is_file():
        raise InputError(f"{run} does not exist; name a run folder or a model.safetensors")
    elif path.suffix != ".safetensors":
        raise InputError(f"{run} is not a .safetensors file; name a run folder or a model.safetensors")
    return path
