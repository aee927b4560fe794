"""Backbone weights by name or path, checked by hash. No source is ever swapped for another."""

import hashlib
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from headstart.errors import InputError
from headstart.parsing import nearest
from headstart.trunk import shapes

IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
IMAGENET_SHA256_PREFIX = "f37072fd"  # torchvision's ResNet18_Weights.IMAGENET1K_V1
BUNDLED = Path(__file__).parent / "assets" / "resnet18-distilled.safetensors"
BUNDLED_SHA256 = "0b891cb2306bd163414ac3ddfe8beff26a384ff70ac750c39d3e32b8cc15db6c"
CONNECT_TIMEOUT_S = 1.5


@dataclass(frozen=True)
class Weights:
    """tensors: backbone state dict (torchvision keys, float32, no fc.*), None for random weights.
    source: what --model.weights named; sha256: of the file, None for random weights."""

    tensors: dict[str, torch.Tensor] | None
    source: str
    sha256: str | None


def ensure_available(source: str) -> None:
    """Download what is to be downloaded and check that the file exists; call it in one process only.

    Raises InputError if the weights cannot be had.
    """
    if source == "imagenet":
        if not _imagenet_cache().is_file():
            _download_imagenet()
    elif source not in ("bundled", "none") and not Path(source).is_file():
        names = ("imagenet", "bundled", "none")
        hint = nearest(source, names) or f"; name one, or {names[0]}, {names[1]} or {names[2]}"
        raise InputError(f"weights {source} is not a file{hint}")


def load_weights(source: str) -> Weights:
    """The backbone of `imagenet`, `bundled`, `none` or a path. Raises InputError for a file that does not fit."""
    if source == "none":
        return Weights(None, source, None)
    path = {"imagenet": _imagenet_cache(), "bundled": BUNDLED}.get(source, Path(source))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if source == "imagenet" and not sha256.startswith(IMAGENET_SHA256_PREFIX):
        raise InputError(f"{path} is damaged (sha256 {sha256[:8]}..., not {IMAGENET_SHA256_PREFIX}...); delete it")
    if source == "bundled" and sha256 != BUNDLED_SHA256:
        raise InputError(f"{path} is damaged; reinstall headstart")
    tensors = _read(path)
    backbone = {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if not name.startswith("fc.")
    }
    _check_keys(path, backbone)
    return Weights(backbone, source, sha256)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(tensors, dict) and all(isinstance(v, torch.Tensor) for v in tensors.values()):
                return tensors
            raise InputError(f"{path} is not a plain state dict of tensors; save model.state_dict()")
    except InputError:
        raise
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix}: {error}") from None
    except Exception:  # torch.load raises UnpicklingError, RuntimeError, EOFError, KeyError ...
        raise InputError(
            f"{path} is not a weights file that can be read without running code; save it as .safetensors"
        ) from None
    raise InputError(f"{path} is neither .safetensors nor .pth; convert it to one of them")


def _check_keys(path: Path, backbone: dict[str, torch.Tensor]) -> None:
    expected = shapes()
    missing, extra = sorted(expected.keys() - backbone.keys()), sorted(backbone.keys() - expected.keys())
    if missing or extra:
        parts = [f"lacks {missing[0]} and {len(missing) - 1} more"] if missing else []
        parts += [f"has {extra[0]} and {len(extra) - 1} more that it should not"] if extra else []
        raise InputError(f"{path} is not a torchvision ResNet-18: it {' and '.join(parts)}")
    for name, value in backbone.items():
        if tuple(value.shape) != expected[name]:
            raise InputError(
                f"{path} is not a torchvision ResNet-18: {name} is {tuple(value.shape)}, not {expected[name]}"
            )


def _imagenet_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_URL.rsplit("/", 1)[1]


def _download_imagenet() -> None:
    target = _imagenet_cache()
    if not _reachable():
        raise InputError(
            f"the imagenet weights are not in {target.parent} and download.pytorch.org cannot be reached; "
            f"name the weights bundled, which come with headstart, or a file, or put {target.name} there"
        )
    staging = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with urllib.request.urlopen(IMAGENET_URL, timeout=30) as answer, staging.open("wb") as out:
            while block := answer.read(1 << 20):
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if not digest.hexdigest().startswith(IMAGENET_SHA256_PREFIX):
            raise InputError(f"{IMAGENET_URL} arrived damaged (sha256 {digest.hexdigest()[:8]}...); try again")
        os.replace(staging, target)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise InputError(f"{IMAGENET_URL} could not be downloaded to {target}: {error}; try again") from None
    finally:
        staging.unlink(missing_ok=True)


def _reachable() -> bool:
    """Whether the server answers a HEAD request in time; name look-up included, which has no timeout of its own."""
    answered = threading.Event()

    def knock() -> None:
        try:
            request = urllib.request.Request(IMAGENET_URL, method="HEAD")
            with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S):
                answered.set()
        except OSError:
            pass

    attempt = threading.Thread(target=knock, daemon=True)
    attempt.start()
    attempt.join(CONNECT_TIMEOUT_S)
    return answered.is_set()
