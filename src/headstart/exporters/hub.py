"""`headstart push`: a finished run to a Hugging Face repository. What is sent is named here; images of the data and checkpoints never are."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headstart.errors import InputError
from headstart.model.header import read_header
from headstart.wording import one_line

SENT = ("model.safetensors", "README.md", "report.html")
"""Of a run folder; config.json is made of the header of the model file."""
_REPO = re.compile(r"(?!.*(--|\.\.))([A-Za-z0-9]([\w.-]{0,94}[A-Za-z0-9])?/)?[A-Za-z0-9]([\w.-]{0,94}[A-Za-z0-9])?")
_PLACES = (("data", "root"), ("model", "weights"), ("runtime", "bank"))  # keys of the configuration
_PICTURE = re.compile(rb"data:image/(?!svg)", re.IGNORECASE)
_NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "socket", "ssl"}


@dataclass(frozen=True)
class Upload:
    """A file as it will be called in the repository. content: a file, or its bytes."""

    name: str
    content: Path | bytes

    @property
    def num_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    @property
    def sha256(self) -> str:
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Package:
    """left_out: names in the run folder that are not sent, each with the reason."""

    uploads: tuple[Upload, ...]
    left_out: dict[str, str]


def prepare(run: Path, repo: str, *, with_pictures: bool) -> Package:
    """What would be sent of a run folder; reads no network. Raises InputError if the run is not finished, and if the model file
    names where its weights lay."""
    for name in ("model.safetensors", "README.md", "summary.json"):
        if not (run / name).is_file():
            raise InputError(f"{run} has no {name}; push takes the folder of a finished run")
    header = read_header(run / "model.safetensors")
    places = _places(run, header["metadata"].get("weights", ""))
    if (text := _header_of(run / "model.safetensors")) != _without(places, text):
        raise InputError(
            f"{run / 'model.safetensors'} says where its weights lay on this machine; train again to push it"
        )
    left_out = {}
    uploads = [Upload("config.json", _config(header["metadata"]))]
    for path in sorted(run.iterdir()):
        pictures = len(_PICTURE.findall(path.read_bytes())) if path.name == "report.html" else 0
        if path.name not in SENT or path.is_symlink() or not path.is_file():
            left_out[path.name + ("/" if path.is_dir() else "")] = "stays here"
        elif pictures and not with_pictures:
            left_out[path.name] = (
                f"holds {pictures} pictures, which may be images of the data; --with_pictures sends it"
            )
        elif path.name in ("README.md", "report.html"):
            text = _without(places, path.read_bytes())
            uploads.append(
                Upload(path.name, _card(text, run.resolve().name, repo) if path.name == "README.md" else text)
            )
        else:
            uploads.append(Upload(path.name, path))
    return Package(tuple(sorted(uploads, key=lambda upload: upload.name)), left_out)


def _card(text: bytes, name: str, repo: str) -> bytes:
    """The model card with the command that downloads the model file."""
    command = f"headstart predict {name} IMAGES...".encode()
    return text.replace(command, f"hf download {repo} model.safetensors --local-dir {name}\n".encode() + command)


def _places(run: Path, weights: str) -> list[str]:
    """Paths of this machine that a run knows of: its data, weights, bank and folder; the longest first. weights: as the model file has it."""
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        named = [config.get(section, {}).get(key) for section, key in _PLACES]
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); use a copy of it") from None
    written = [str(place).rstrip("/") for place in [*named, weights, run, run.resolve()] if place]
    found = {place for place in [*written, *map(os.path.abspath, written)] if "/" in place}
    return sorted(found, key=len, reverse=True)


def _without(places: list[str], content: bytes) -> bytes:
    """Each place by its last name alone."""
    for place in places:
        name = place.rpartition("/")[2].replace("\\", r"\\").encode()  # as re.sub wants it
        content = re.sub(rb"(?<![\w<.+])" + re.escape(place.encode()) + rb"(?![\w-])", name, content)
    return content


def _header_of(model: Path) -> bytes:
    with model.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _config(info: dict[str, Any]) -> bytes:
    """config.json: what programs look for beside the weights. The header of the model file is what counts."""
    classes = info["classes"]
    values = {
        "library_name": "headstart",
        "architecture": info["backbone"],
        "num_classes": len(classes),
        "id2label": {str(code): name for code, name in enumerate(classes)},
        "label2id": {name: code for code, name in enumerate(classes)},
        "preprocess": info["preprocess"],
        "headstart_version": info["versions"].get("headstart"),
    }
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def push_command(run: str, repo: str, *, private: bool, dry_run: bool, with_pictures: bool) -> None:
    """Show what is sent, and send it. Raises InputError, also for a refusal and for a network that is not there."""
    if not _REPO.fullmatch(repo):
        raise InputError(f"{repo} is no name of a repository; it must look like your-name/ants-and-bees")
    package = prepare(Path(run), repo, with_pictures=with_pictures)
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    print(f"{endpoint}/{repo}{' (private, if it is made now)' if private else ''}")
    for upload in package.uploads:
        print(f"  {upload.name:20} {upload.num_bytes:>12,} bytes  sha256 {upload.sha256}")
    for name, reason in package.left_out.items():
        print(f"  {name:20} not sent: {reason}")
    if dry_run:
        print("nothing was sent")
        return
    print(f"sent: {_send(package, repo, private=private, endpoint=endpoint, message=f'headstart: {Path(run).name}')}")


def _send(package: Package, repo: str, *, private: bool, endpoint: str, message: str) -> str:
    """One commit. Returns where it is."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("", "0", "FALSE", "NO", "OFF"):
        raise InputError("HF_HUB_OFFLINE forbids the network; unset it to push, or look with --dry-run")
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise InputError("no Hugging Face token; log in once with: hf auth login, or set HF_TOKEN (one that may write)")
    api = HfApi(endpoint=endpoint, library_name="headstart")
    try:
        full_name = api.create_repo(repo, private=private, exist_ok=True, repo_type="model").repo_id
        operations = [CommitOperationAdd(upload.name, upload.content) for upload in package.uploads]
        commit = api.create_commit(full_name, operations, commit_message=message, repo_type="model")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise InputError(f"{endpoint} refuses {repo} ({status}): {_line(error)}; {_advice(status)}") from None
    except Exception as error:
        if isinstance(error, OSError) or {kind.__module__.split(".")[0] for kind in type(error).__mro__} & _NETWORK:
            raise InputError(f"{endpoint} cannot be reached ({_line(error)}); nothing was sent") from None
        if isinstance(error, ValueError):  # what the repository says of the model card
            raise InputError(f"{repo}: {_line(error)}") from None
        raise
    return str(commit.commit_url)


def _advice(status: int | str) -> str:
    if status == 401:
        return "log in again with: hf auth login"
    if status in (403, 404):
        return "the token must have the right to write there"
    return "nothing was committed"


def _line(error: Exception) -> str:
    """What the server said rather than where it said it."""
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return " ".join(said.split())[:300]
