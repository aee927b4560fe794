"""Backbone weights by name or path, checked by hash and by number. No source is ever swapped for another."""

import argparse
import contextlib
import hashlib
import http.client
import os
import secrets
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy._core.multiarray import scalar as _scalar
from safetensors import SafetensorError
from safetensors.torch import load_file

from headstart.errors import InputError, warn
from headstart.model.frozen_trunk import shapes, unusable
from headstart.runtime.processes import from_all, on_each_host
from headstart.wording import nearest, one_line

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Download:
    """url: of a file that is kept in torch's hub cache; sha256_prefix: how its hash begins."""

    url: str
    sha256_prefix: str

    @property
    def path(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[1]


IMAGENET = Download("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")
"""torchvision's ResNet18_Weights.IMAGENET1K_V1."""
BUNDLED = Path(__file__).parent.parent / "assets" / "resnet18-distilled.safetensors"
BUNDLED_SHA256 = "0b891cb2306bd163414ac3ddfe8beff26a384ff70ac750c39d3e32b8cc15db6c"
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 1.5, 30.0

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights", "params",
            "state_dict_ema", "model_ema", "ema")  # fmt: skip
"""Keys of training checkpoints below which the state dict may lie, in the order of preference."""
_PLAIN_DATA: list[Any] = [argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType,
               (_scalar, "numpy.core.multiarray.scalar"), (_scalar, "numpy._core.multiarray.scalar")]  # fmt: skip
"""What training scripts put beside the state dict: their options and their best accuracy. None of it runs code."""
COUNTER = "num_batches_tracked"
PROFILER_BUFFERS = ("total_ops", "total_params")  # left in the state dict by thop, a counter of operations


_WARNED_OF: set[Path] = set()


@dataclass(frozen=True)
class Weights:
    """tensors: backbone state dict (torchvision keys, float32, no fc.*), None for random weights.
    source: the value of --model.weights; sha256: of the file, None for random weights."""

    tensors: dict[str, torch.Tensor] | None
    source: str
    sha256: str | None


def obtain_weights(accelerator: "Accelerator", source: str, *, imagenet: Download = IMAGENET) -> Weights:
    """`load_weights` in every process, after the first process of each host has made sure of the file.

    Raises InputError in all processes if one host cannot get the file or cannot use it, or if two hosts have different files.
    """
    on_each_host(accelerator, lambda: ensure_available(source, imagenet=imagenet))
    weights, problem = None, None
    try:
        weights = load_weights(source, imagenet=imagenet)
    except InputError as error:
        problem = str(error)
    host = f"on {socket.gethostname()}"
    outcomes = from_all(accelerator, (host, problem, None if weights is None else weights.sha256))
    failed = [(where, reason) for where, reason, _ in outcomes if reason is not None]
    if failed:
        where, reason = failed[0]
        raise InputError(reason if accelerator.num_processes == 1 else f"{where}: {reason}")
    hashes = {sha256: where for where, _, sha256 in outcomes}
    if len(hashes) > 1:
        raise InputError(
            f"weights {source} are different files {' and '.join(hashes.values())} (sha256 "
            f"{' and '.join(str(sha256)[:8] for sha256 in hashes)}); copy one of them to every host"
        )
    assert weights is not None
    return weights


def ensure_available(source: str, *, imagenet: Download = IMAGENET) -> None:
    """Download the weights if they have to be downloaded, and check that the file exists. Call it in one process per host.

    Raises InputError if the weights cannot be obtained.
    """
    if source == "imagenet":
        if not imagenet.path.is_file():
            _download(imagenet)
    elif source not in ("bundled", "none") and not Path(source).is_file():
        names = ("imagenet", "bundled", "none")
        hint = nearest(source, names) or f"; name one, or {names[0]}, {names[1]} or {names[2]}"
        raise InputError(f"weights {source} is not a file{_of_this_host()}{hint}")


def _of_this_host() -> str:
    return f" on {socket.gethostname()}" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def load_weights(source: str, *, imagenet: Download = IMAGENET) -> Weights:
    """The backbone of `imagenet`, `bundled`, `none` or a path. Raises InputError for a file that does not fit."""
    if source == "none":
        return Weights(None, source, None)
    path = {"imagenet": imagenet.path, "bundled": BUNDLED}.get(source, Path(source))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if source == "imagenet" and not sha256.startswith(imagenet.sha256_prefix):
        raise InputError(f"{path} is damaged (sha256 {sha256[:8]}..., not {imagenet.sha256_prefix}...); delete it")
    if source == "bundled" and sha256 != BUNDLED_SHA256:
        raise InputError(f"{path} is damaged; reinstall headstart")
    return Weights(_backbone_in(_read(path), path), source, sha256)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        suffix = path.suffix.lower()
        if suffix == ".safetensors":
            return load_file(path)
        if suffix in TORCH_SUFFIXES:
            with torch.serialization.safe_globals(_PLAIN_DATA):
                return _state_dict_in(torch.load(path, map_location="cpu", weights_only=True), path)
    except InputError:
        raise
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix}: {one_line(error)}") from None
    except Exception:  # torch.load raises UnpicklingError, RuntimeError, EOFError, KeyError ...
        raise InputError(
            f"{path} is not a weights file that can be read without running code; save it as .safetensors"
        ) from None
    raise InputError(f"{path} is neither .safetensors nor .pth; convert it to one of them")


def _state_dict_in(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """A state dict, or that of a training checkpoint, where it lies one level down."""
    if isinstance(content, Mapping):
        for found in (content, *(content[key] for key in WRAPPERS if key in content)):
            if isinstance(found, Mapping) and found and all(isinstance(v, torch.Tensor) for v in found.values()):
                return {str(name): value.detach() for name, value in found.items()}
    raise InputError(
        f"{path} is not a state dict of tensors, nor a checkpoint with one as {', '.join(WRAPPERS[:3])}; save model.state_dict()"
    )


def _backbone_in(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of `shapes()` in a foreign state dict: without the prefixes of wrappers (DataParallel's module.,
    torch.compile's _orig_mod., backbone. and the like), its head, and what does not belong to the network; in float32.

    Counters of batches that are missing are 0, as in torch's own strict loading: torchvision's older files have none.
    Raises InputError if a tensor is missing, has another shape or is not finite.
    """
    expected = shapes()
    prefixes = sorted({name.removesuffix("conv1.weight") for name, value in tensors.items()
                       if f".{name}".endswith(".conv1.weight") and tuple(value.shape) == expected["conv1.weight"]})  # fmt: skip
    if len(prefixes) > 1:
        raise InputError(
            f"{path} holds several networks ({', '.join(prefix or 'conv1.weight' for prefix in prefixes)}); save one of them alone"
        )
    prefix = prefixes[0] if prefixes else ""
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    parts = {name.split(".")[0] for name in expected} | {f"layer{stage}" for stage in range(5, 10)}
    others = [name for name in inside if name not in expected]
    extra = sorted(
        name for name in others if name.split(".")[0] in parts and name.rsplit(".", 1)[-1] not in PROFILER_BUFFERS
    )
    missing = sorted(name for name in expected if name not in inside and not name.endswith(COUNTER))
    if missing or extra:
        told = [f"lacks {missing[0]} and {len(missing) - 1} more"] if missing else []
        told += [f"has {extra[0]} and {len(extra) - 1} more that it should not have"] if extra else []
        raise InputError(f"{path} is not a torchvision ResNet-18: it {' and '.join(told)}")
    backbone: dict[str, torch.Tensor] = {}
    for name, shape in expected.items():
        value = inside.get(name, torch.zeros((), dtype=torch.int64))
        if name.endswith(COUNTER) and value.numel() == 1:
            value = value.reshape(())
        if tuple(value.shape) != shape:
            raise InputError(f"{path} is not a torchvision ResNet-18: {name} is {tuple(value.shape)}, not {shape}")
        if value.dtype.is_complex or not (value.is_floating_point() or name.endswith(COUNTER)):
            raise InputError(
                f"{path}: {name} is {str(value.dtype).removeprefix('torch.')}; save the weights in float32"
            )
        backbone[name] = value.to(torch.int64 if name.endswith(COUNTER) else torch.float32).contiguous()
    if reason := unusable(backbone):
        raise InputError(f"{path}: {reason}; use another copy of these weights")
    outside = [name for name in tensors if not name.startswith(prefix)]
    unused = sorted([*outside, *(name for name in others if not name.startswith("fc."))])
    if unused and os.environ.get("RANK", "0") == "0" and path not in _WARNED_OF:  # once, not for each of several runs
        _WARNED_OF.add(path)
        names = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        warn(f"{path}: not part of the backbone, so not used: {names}")
    return backbone


def _download(download: Download) -> None:
    target = download.path
    if not _reachable(download.url):
        raise InputError(
            f"the imagenet weights are not in {target.parent}{_of_this_host()} and {urlsplit(download.url).hostname} cannot be reached; "
            f"use --model.weights bundled or a local file, or copy {target.name} there"
        )
    staging = target.with_name(f"{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with urllib.request.urlopen(download.url, timeout=READ_TIMEOUT_S) as answer, staging.open("wb") as out:
            while block := answer.read(1 << 20):
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if not digest.hexdigest().startswith(download.sha256_prefix):
            raise InputError(f"{download.url} arrived damaged (sha256 {digest.hexdigest()[:8]}...); try again")
        os.replace(staging, target)
    except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are among the first
        raise InputError(
            f"{download.url} could not be downloaded to {target}{_of_this_host()}: {error}; try again"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # its folder may not be one
            staging.unlink()


def _reachable(url: str) -> bool:
    """Whether the server answers a HEAD request in time; name look-up included, which has no timeout of its own."""
    answered = threading.Event()

    def knock() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S):
                answered.set()
        except (OSError, http.client.HTTPException):
            pass

    attempt = threading.Thread(target=knock, daemon=True)
    attempt.start()
    attempt.join(CONNECT_TIMEOUT_S)
    return answered.is_set()
