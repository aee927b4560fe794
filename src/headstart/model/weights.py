"""Backbone weights by name or path, checked by hash and by number. Only `auto` stands for one of several sources."""

import argparse
import hashlib
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy._core.multiarray import scalar as _scalar
from safetensors import SafetensorError
from safetensors.torch import load_file

from headstart.backbones import Backbone
from headstart.errors import InputError
from headstart.launcher import is_first_process
from headstart.messages import warn
from headstart.model.build import backbone_shapes, not_usable
from headstart.model.model_file import hash_of
from headstart.model.weight_sources import (
    AUTO,
    BUNDLED,
    BUNDLED_SHA256,
    HUB,
    IMAGENET,
    Download,
    Packaged,
    cached_file,
    check_weights,
    choose_weights,
    ensure_downloaded,
    of_this_host,
    reachable,
)
from headstart.runtime.processes import from_all, on_each_host, on_main
from headstart.wording import listed, one_line

if TYPE_CHECKING:
    from accelerate import Accelerator


TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema"),
)
"""Keys of training checkpoints below which the state dict may lie, in the order of preference."""
_PLAIN_DATA: list[Any] = [
    *(argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
    *((_scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
]
"""What training scripts put beside the state dict: their options and their best accuracy. None of it runs code."""
COUNTER = "num_batches_tracked"
PROFILER_BUFFERS = ("total_ops", "total_params")  # left in the state dict by thop, a counter of operations
_WARNED_ABOUT: set[Path] = set()


@dataclass(frozen=True)
class Weights:
    """tensors: backbone state dict (torchvision keys, float32, no fc.*), None for random weights.
    source: one of NAMES but auto, or a path; sha256: of the file, None for random weights."""

    tensors: dict[str, torch.Tensor] | None
    source: str
    sha256: str | None


def obtain_weights(
    accelerator: "Accelerator", source: str, backbone: Backbone, *, imagenet: Download | Packaged | None = None
) -> Weights:
    """`load_weights` in every process, after the first process of each host has made sure of the file. The main process
    decides which name `auto` stands for.

    Raises InputError in all processes if one host cannot get or use the file, or if two hosts have different files."""
    if source == AUTO:
        source = on_main(accelerator, lambda: choose_weights(backbone, imagenet=imagenet))
    on_each_host(accelerator, lambda: ensure_available(source, backbone, imagenet=imagenet))
    weights, problem = None, None
    try:
        weights = load_weights(source, backbone, imagenet=imagenet)
    except InputError as error:
        problem = str(error)
    host = f"on {socket.gethostname()}"
    outcomes = from_all(accelerator, (host, problem, None if weights is None else weights.sha256))
    for where, reason, _ in outcomes:
        if reason is not None:
            raise InputError(reason if accelerator.num_processes == 1 else f"{where}: {reason}")
    hashes = {sha256: where for where, _, sha256 in outcomes}
    if len(hashes) > 1:
        raise InputError(
            f"weights {source} are different files {' and '.join(hashes.values())} (sha256 "
            f"{' and '.join(str(sha256)[:8] for sha256 in hashes)}); copy one of them to every host"
        )
    assert weights is not None
    return weights


def ensure_available(source: str, backbone: Backbone, *, imagenet: Download | Packaged | None = None) -> None:
    """Download the weights if necessary, and check that the file exists. Call it in one process per host.

    Raises InputError if the weights cannot be obtained."""
    check_weights(source, backbone.name)
    stored = imagenet or IMAGENET.get(backbone.name)
    if source == "imagenet" and isinstance(stored, Download):
        ensure_downloaded(stored, backbone.name)
    elif source == HUB:
        _from_hub(backbone)


def load_weights(source: str, backbone: Backbone, *, imagenet: Download | Packaged | None = None) -> Weights:
    """The backbone of one of NAMES or of a path. Raises InputError for a file that does not fit."""
    if source == "none":
        return Weights(None, source, None)
    if source == HUB:
        tensors = _from_hub(backbone)
        return Weights(tensors, source, hash_of(tensors))
    stored = imagenet or IMAGENET.get(backbone.name)
    path = {"bundled": BUNDLED}.get(source, Path(source))
    if source == "imagenet":
        assert stored is not None
        path = stored.path
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if source == "imagenet" and stored is not None and not sha256.startswith(stored.sha256_prefix):
        remedy = "delete it" if isinstance(stored, Download) else f"reinstall {stored.package.replace('_', '-')}"
        raise InputError(f"{path} is damaged (sha256 {sha256[:8]}..., not {stored.sha256_prefix}...); {remedy}")
    if source == "bundled" and sha256 != BUNDLED_SHA256:
        raise InputError(f"{path} is damaged; reinstall headstart")
    tensors = _read(path)
    if isinstance(stored, Packaged):
        tensors = _timm_names(tensors, backbone)
    return Weights(_backbone_in(tensors, path, backbone), source, sha256)


def _timm_names(tensors: dict[str, torch.Tensor], backbone: Backbone) -> dict[str, torch.Tensor]:
    """The original code of EfficientNet-Lite has the tensors of timm in the same order, with other names."""
    if "_conv_stem.weight" not in tensors:
        return tensors
    renamed = {"_fc.weight": f"{backbone.head}.weight", "_fc.bias": f"{backbone.head}.bias"}
    renamed |= dict(zip((name for name in tensors if name not in renamed), backbone_shapes(backbone), strict=False))
    return {renamed.get(name, name): value for name, value in tensors.items()}


def _from_hub(backbone: Backbone) -> dict[str, torch.Tensor]:
    """timm's pretrained weights, without their head. Raises InputError if they cannot be loaded."""
    from huggingface_hub import constants

    from headstart.model.timm_network import pretrained_tensors

    cached = cached_file(backbone)
    try:
        # first, because huggingface_hub tries again for most of a minute
        if not (cached or constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT)):
            raise ConnectionError(f"{urlsplit(constants.ENDPOINT).hostname} cannot be reached")
        tensors = pretrained_tensors(backbone, cached)
    except Exception as error:  # timm, huggingface_hub, its HTTP library and the file system raise many things
        raise InputError(
            f"the weights of {backbone.name} cannot be loaded from the Hub{of_this_host()} ({one_line(error)[:200]}); "
            "use --model.weights none or the path of a file"
        ) from None
    return _backbone_in(tensors, Path(backbone.base_model or backbone.timm), backbone)


def _read(path: Path) -> dict[str, torch.Tensor]:
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise InputError(f"{path} is neither .safetensors nor .pth; convert it to one of them")
    try:
        if suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_PLAIN_DATA):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix}: {one_line(error)}") from None
    except Exception:  # torch.load raises UnpicklingError, RuntimeError, EOFError, KeyError ...
        raise InputError(
            f"{path} is not a weights file that can be read without running code; save it as .safetensors"
        ) from None
    return _state_dict_in(content, path)


def _state_dict_in(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """A state dict, or that of a training checkpoint, where it lies one level down."""
    if isinstance(content, Mapping):
        for found in (content, *(content[key] for key in WRAPPERS if key in content)):
            if isinstance(found, Mapping) and found and all(isinstance(v, torch.Tensor) for v in found.values()):
                return {str(name): value.detach() for name, value in found.items()}
    raise InputError(
        f"{path} is not a state dict of tensors, nor a checkpoint with one as {', '.join(WRAPPERS[:3])}; "
        "save model.state_dict()"
    )


def _backbone_in(tensors: Mapping[str, torch.Tensor], path: Path, backbone: Backbone) -> dict[str, torch.Tensor]:
    """The tensors of `backbone_shapes` in a foreign state dict, in float32: without the prefix of a wrapper
    (DataParallel's module., torch.compile's _orig_mod., backbone. and the like), its head, and foreign tensors.

    Counters of batches that are missing are 0, as in torch's own strict loading: torchvision's older files have none.
    Raises InputError if a tensor is missing, has another shape or is not finite."""
    expected = backbone_shapes(backbone)
    prefix = _prefix_in(tensors, path, expected)
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    others = [name for name in inside if name not in expected]
    _check_names(inside, others, path, backbone)
    found: dict[str, torch.Tensor] = {}
    for name, shape in expected.items():
        counts = name.endswith(COUNTER)
        value = inside.get(name, torch.zeros((), dtype=torch.int64))
        if counts and value.numel() == 1:
            value = value.reshape(())
        if tuple(value.shape) != shape:
            raise InputError(f"{path} is not a {_network(backbone)}: {name} is {tuple(value.shape)}, not {shape}")
        if not (value.is_floating_point() or counts):
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(f"{path}: {name} is {kind}; save the weights in float32")
        found[name] = value.to(torch.int64 if counts else torch.float32).contiguous()
    if reason := not_usable(found):
        raise InputError(f"{path}: {reason}; use another copy of these weights")
    outside = [name for name in tensors if not name.startswith(prefix)]
    unused = sorted([*outside, *(name for name in others if not name.startswith(f"{backbone.head}."))])
    if unused and is_first_process() and path not in _WARNED_ABOUT:  # once for several runs
        _WARNED_ABOUT.add(path)
        warn(f"{path}: not part of the backbone, so not used: {listed(unused)}")
    return found


def _network(backbone: Backbone) -> str:
    return f"torchvision {backbone.title}" if backbone.of_torchvision else backbone.title


def _prefix_in(tensors: Mapping[str, torch.Tensor], path: Path, expected: Mapping[str, tuple[int, ...]]) -> str:
    """What stands before the names of the network."""
    first, shape = next(iter(expected.items()))
    prefixes = sorted(
        name.removesuffix(first)
        for name, value in tensors.items()
        if f".{name}".endswith(f".{first}") and tuple(value.shape) == shape
    )
    if len(prefixes) > 1:
        names = ", ".join(prefix or first for prefix in prefixes)
        raise InputError(f"{path} holds several networks ({names}); save one of them alone")
    return prefixes[0] if prefixes else ""


def _check_names(inside: Mapping[str, torch.Tensor], others: Iterable[str], path: Path, backbone: Backbone) -> None:
    """Raise InputError if a tensor is missing, or there is one more in a part of the network, as in a deeper one."""
    expected = backbone_shapes(backbone)
    parts = {name.split(".")[0] for name in expected} | {f"layer{stage}" for stage in range(5, 10)}
    head = f"{backbone.head}."
    extra = [
        name
        for name in others
        if name.split(".")[0] in parts and not name.startswith(head) and name.split(".")[-1] not in PROFILER_BUFFERS
    ]
    missing = [name for name in expected if name not in inside and not name.endswith(COUNTER)]
    found = [f"lacks {listed(sorted(missing), limit=1)}"] if missing else []
    found += [f"has {listed(sorted(extra), limit=1)}, which it should not"] if extra else []
    if found:
        raise InputError(f"{path} is not a {_network(backbone)}: it {' and '.join(found)}")
