"""The self-describing model file: tensors under the keys of torchvision or timm, everything else in its header."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from headstart.backbones import RESNET18, Backbone
from headstart.data.transforms import Preprocess
from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.model.backbones import find_backbone
from headstart.model.build import backbone_shapes, network_of, not_usable
from headstart.model.calibration import Calibration
from headstart.model.header import check_fields, encode_fields, read_fields
from headstart.model.network import Network
from headstart.model.open_set import OpenSet
from headstart.tensor_file import MALFORMED, encode_header

SCHEMA = 1


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
    backbone: str = RESNET18.name
    schema: int = SCHEMA


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """safetensors, atomically; the same tensors and metadata give the same bytes (the library's header does not)."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    ordered = sorted(plain, key=lambda name: (-plain[name].element_size(), name))  # as the library aligns them
    entries, end = {}, 0
    for name in ordered:
        begin, end = end, end + plain[name].nbytes
        kind = "F" if plain[name].is_floating_point() else "I"
        dtype = f"{kind}{8 * plain[name].element_size()}"
        entries[name] = {"dtype": dtype, "shape": list(plain[name].shape), "data_offsets": [begin, end]}
    start = encode_header(entries, dict(sorted({"format": "pt", **metadata}.items())))

    def write(staging: Path) -> None:
        with staging.open("wb") as out:
            out.write(start)
            for name in ordered:
                out.write(plain[name].numpy().data)

    write_atomically(path, write)


def save_model(path: Path, model: Network, info: ModelInfo) -> None:
    """Write the model file: fp32 tensors under the keys of torchvision or timm, `info` in the header."""
    save_model_tensors(path, model.state_dict(), info)


def save_model_tensors(path: Path, tensors: Mapping[str, torch.Tensor], info: ModelInfo) -> None:
    """save_model for who has a state dict and no network."""
    fields = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    fields["preprocess"] = info.preprocess.to_json()
    fields["tensors_sha256"] = hash_of(tensors)
    fields["calibration"] = None if info.calibration is None else info.calibration.to_json()
    save_tensors(path, tensors, encode_fields(fields))


def hash_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the bytes of all tensors, by their names in order."""
    digest = hashlib.sha256()
    for _, value in sorted(tensors.items()):
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def read_info(path: Path) -> ModelInfo:
    """The header of a model file; tensors are not read. Raises InputError if it is not one of ours."""
    fields, _ = read_fields(path)
    if fields.get("schema") != SCHEMA:
        raise InputError(f"{path} uses schema {fields.get('schema')}, this version reads {SCHEMA}; update headstart")
    fields = {"calibration": None, "golden": None, "tensors_sha256": None} | fields
    if odd := sorted(fields.keys() ^ {field.name for field in dataclasses.fields(ModelInfo)}):
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
        except MALFORMED as error:
            raise InputError(
                f"{path}: the calibration in the header is damaged ({error}); train again or use a copy"
            ) from None
    return ModelInfo(**fields)


def load_model(path: Path) -> tuple[Network, ModelInfo]:
    """A model file as a network in eval mode, and its header. Raises InputError if it does not fit."""
    tensors, info = load_tensors(path)
    return network_of(tensors, find_backbone(info.backbone)), info


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], ModelInfo]:
    """The tensors of a model file, and its header. Raises InputError if they do not fit."""
    info = read_info(path)
    try:
        backbone = find_backbone(info.backbone)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if info.calibration is not None and info.calibration.open_set is not None:
        _check_reference(info.calibration.open_set, backbone, path)
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from None
    count = len(info.classes)
    head = {f"{backbone.head}.weight": (count, backbone.features), f"{backbone.head}.bias": (count,)}
    wanted = backbone_shapes(backbone) | head
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        differences = (f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'missing')}" for name in odd[:3])
        raise InputError(f"{path} does not fit a {info.backbone} with {count} classes: {', '.join(differences)}")
    for name, value in tensors.items():
        dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        if value.dtype != dtype:
            kinds = [str(kind).removeprefix("torch.") for kind in (value.dtype, dtype)]
            raise InputError(f"{path}: {name} is {kinds[0]} and must be {kinds[1]}; use another copy of this file")
    if reason := not_usable(tensors):
        raise InputError(f"{path}: {reason}; train again or use another copy of this file")
    return tensors, info


def _check_reference(open_set: OpenSet, backbone: Backbone, path: Path) -> None:
    count, width = open_set.reference.shape
    if width != backbone.features or not 1 <= open_set.neighbour <= count:
        raise InputError(
            f"{path}: the calibration in the header is damaged ({count} reference features of {width} numbers); train "
            "again or use a copy"
        )
