"""`headstart push`: a finished run to a Hugging Face repository. SENT lists what is sent; checkpoints and images of the
data never are."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headstart.config_io import check_single_run
from headstart.errors import InputError
from headstart.model.header import check_fields, class_codes, read_fields
from headstart.wording import one_line, plural

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

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Package:
    """left_out: names in the run folder that are not sent, each with the reason."""

    uploads: tuple[Upload, ...]
    left_out: dict[str, str]


def prepare(run: Path, repo: str, *, with_pictures: bool) -> Package:
    """What would be sent of a run folder; uses no network. Raises InputError if the run is not finished, and if the
    model file names the folder of its weights."""
    check_single_run(run)
    for name in ("model.safetensors", "README.md", "summary.json"):
        if not (run / name).is_file():
            raise InputError(f"{run} has no {name}; push takes the folder of a finished run")
    model = run / "model.safetensors"
    fields, header = read_fields(model)
    check_fields(fields, model)
    places = _places(run, fields.get("weights", ""))
    with model.open("rb") as file:
        start = file.read(header.start)
    if start != _without(places, start):
        raise InputError(f"{model} holds the path of its weights on this machine; train again to push it")
    left_out = {}
    uploads = [Upload("config.json", _config(fields))]
    for path in sorted(run.iterdir()):
        pictures = len(_PICTURE.findall(path.read_bytes())) if path.name == "report.html" else 0
        if path.name not in SENT or path.is_symlink() or not path.is_file():
            left_out[path.name + ("/" if path.is_dir() else "")] = "stays here"
        elif pictures and not with_pictures:
            left_out[path.name] = f"holds {plural(pictures, 'picture')}, maybe of the data; --with_pictures sends it"
        elif path.suffix in (".md", ".html"):
            text = _without(places, path.read_bytes())
            uploads.append(Upload(path.name, text if path.suffix == ".html" else _card(text, run.resolve().name, repo)))
        else:
            uploads.append(Upload(path.name, path))
    return Package(tuple(sorted(uploads, key=lambda upload: upload.name)), left_out)


def _card(text: bytes, name: str, repo: str) -> bytes:
    """The model card with the command that downloads the model file."""
    command = f"headstart predict {name} IMAGES...".encode()
    return text.replace(command, f"hf download {repo} model.safetensors --local-dir {name}\n".encode() + command)


def _places(run: Path, weights: str) -> list[str]:
    """Paths of this machine in a run: its data, weights, bank and folder; the longest first. weights: as in the model
    file."""
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


def _config(info: dict[str, Any]) -> bytes:
    """config.json: what programs look for beside the weights. The header of the model file is what counts."""
    values = {
        "library_name": "headstart",
        "architecture": info["backbone"],
        "num_classes": len(info["classes"]),
        **class_codes(info["classes"]),
        "preprocess": info["preprocess"],
        "headstart_version": info["versions"].get("headstart"),
    }
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def push_command(run: str, repo: str, *, private: bool, dry_run: bool, with_pictures: bool) -> None:
    """List what is sent, and send it. Raises InputError, also for a refusal and without a network."""
    if not _REPO.fullmatch(repo):
        raise InputError(f"{repo} is not a name of a repository; it must look like your-name/ants-and-bees")
    package = prepare(Path(run), repo, with_pictures=with_pictures)
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    print(f"{endpoint}/{repo}{' (private, if it is made now)' if private else ''}")
    for upload in package.uploads:
        content = upload.read()
        print(f"  {upload.name:20} {len(content):>12,} bytes  sha256 {hashlib.sha256(content).hexdigest()}")
    for name, reason in package.left_out.items():
        print(f"  {name:20} not sent: {reason}")
    if dry_run:
        print("nothing was sent")
        return
    commit_url = _send(package, repo, private=private, endpoint=endpoint, message=f"headstart: {Path(run).name}")
    print(f"sent: {commit_url}")


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
        status = error.response.status_code if error.response is not None else "no response"
        forbidden = "the token needs write permission there"
        advice: dict[int | str, str] = {401: "log in again with: hf auth login", 403: forbidden, 404: forbidden}
        raise InputError(
            f"{endpoint} refuses {repo} ({status}): {_line(error)}; {advice.get(status, 'nothing was committed')}"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) or {kind.__module__.split(".")[0] for kind in type(error).__mro__} & _NETWORK:
            raise InputError(f"{endpoint} cannot be reached ({_line(error)}); nothing was sent") from None
        if isinstance(error, ValueError):  # the repository refuses the model card
            raise InputError(f"{repo}: {_line(error)}") from None
        raise
    return str(commit.commit_url)


def _line(error: Exception) -> str:
    """The message of the server rather than the address."""
    message = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return " ".join(message.split())[:300]
