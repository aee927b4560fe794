"""headstart push against a stand-in for the hub: exactly what was shown is committed, and a refusal is one sentence."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, safe_open
from support.models import CLASSES, write_model
from support.runs import small

from headstart import InputError, ModelConfig
from headstart.artifacts import save_tensors
from headstart.header import read_header
from headstart.push import prepare, push_command
from headstart.start import run as start
from headstart.weights import BUNDLED


class Hub(ThreadingHTTPServer):
    """As much of the hub's HTTP interface as one commit needs; remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str, str | None]] = []
        self.repo: dict[str, Any] = {}
        self.committed: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.refuse: tuple[str, int] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, values: Any, status: int = 200) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        body, hub = self._body(), self.server
        hub.requests.append((self.command, self.path, self.headers.get("Authorization")))
        if hub.refuse is not None and hub.refuse[0] in self.path:
            self._answer({"error": "You don't have the rights to create a model here"}, hub.refuse[1])
        elif self.path == "/api/repos/create":
            hub.repo = json.loads(body)
            self._answer({"url": f"{hub.url}/me/ants", "name": "me/ants"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > 1e6 else "regular", "shouldIgnore": False}
                for f in files
            ]
            self._answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            actions = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/store/{one['oid']}", "header": {}}}}
                for one in wanted
            ]
            self._answer({"transfer": "basic", "objects": actions})
        elif self.path.startswith("/store/"):
            hub.stored[self.path.removeprefix("/store/")] = body
            self._answer({})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    assert value["encoding"] == "base64"
                    hub.committed[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.committed[value["path"]] = hub.stored[value["oid"]]
            self._answer({"success": True, "commitOid": "f" * 40, "commitUrl": f"{hub.url}/me/ants/commit/{'f' * 40}"})
        else:
            self._answer({"error": f"the stand-in does not know {self.path}"}, 404)

    do_GET = do_POST = do_PUT = _handle


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with all that lies around in one."""
    folder = write_model(tmp_path_factory.mktemp("runs") / "run")
    (folder / "README.md").write_text("---\nlibrary_name: headstart\n---\n# ResNet-18\n")
    (folder / "report.html").write_text("<img src='data:image/svg+xml,...'>")
    (folder / "curves.png").write_bytes(b"\x89PNG curves")
    for name in (
        "summary.json",
        "config.yaml",
        "manifest.parquet",
        "predictions.parquet",
        "train_views.png",
        "val_predictions.png",
    ):
        (folder / name).write_text("{}")
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    (folder / "checkpoints" / "step_1" / "model.safetensors").write_bytes(b"x")
    return folder


REPO = "me/ants"
SENT = {"README.md", "config.json", "curves.png", "model.safetensors", "report.html"}


def push(*argv: object, **environment: str) -> subprocess.CompletedProcess:
    """In a process of its own, as huggingface_hub reads the environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "headstart", "push", *map(str, argv)],
        env=kept | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def shown(said: str) -> dict[str, tuple[int, str]]:
    """name -> (bytes, sha256), from what was printed."""
    rows = [line.split() for line in said.splitlines() if " bytes  sha256 " in line]
    return {row[0]: (int(row[1].replace(",", "")), row[4]) for row in rows}


def test_what_is_shown_is_what_is_committed(run, hub, tmp_path) -> None:
    done = push(run, "me/ants", "--private", HF_TOKEN="hf_secret", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert hub.committed.keys() == SENT
    found = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in hub.committed.items()}
    assert shown(done.stdout) == found
    assert hub.committed["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert hub.repo.get("private") is True or hub.repo.get("visibility") == "private"  # by its version
    assert {token for _, path, token in hub.requests if path.startswith("/api/")} == {"Bearer hf_secret"}
    assert "hf_secret" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"sent: {hub.url}/me/ants/commit/{'f' * 40}"


def test_a_dry_run_shows_the_same_and_sends_nothing(run, hub, tmp_path) -> None:
    done = push(run, "me/ants", "--dry-run", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    assert shown(done.stdout).keys() == SENT
    for name in (
        "checkpoints/",
        "manifest.parquet",
        "predictions.parquet",
        "train_views.png",
        "val_predictions.png",
        "config.yaml",
    ):
        assert f"  {name:20} not sent: stays here" in done.stdout
    assert done.stdout.endswith("nothing was sent\n")


def test_config_json_names_the_classes_in_order(run) -> None:
    uploads = {upload.name: upload for upload in prepare(run, REPO, with_pictures=False).uploads}
    config = json.loads(uploads["config.json"].content)
    assert [config["id2label"][str(code)] for code in range(3)] == list(CLASSES)
    assert [config["label2id"][name] for name in CLASSES] == [0, 1, 2]
    assert config["preprocess"] == read_header(run / "model.safetensors")["metadata"]["preprocess"]


def test_images_of_the_data_in_the_report_stay_here_unless_asked_for(run, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "report.html").write_text("<img src='data:image/jpeg;base64,/9j'><img src=\"DATA:image/png;base64,iV\">")
    package = prepare(folder, REPO, with_pictures=False)
    assert {upload.name for upload in package.uploads} == SENT - {"report.html"}
    assert "2 pictures" in package.left_out["report.html"]
    assert {upload.name for upload in prepare(folder, REPO, with_pictures=True).uploads} == SENT
    (folder / "curves.png").unlink()
    (folder / "curves.png").symlink_to(folder / "val_predictions.png")
    assert "curves.png" in prepare(folder, REPO, with_pictures=True).left_out


@pytest.mark.parametrize(
    ("refused", "status", "reason"),
    [
        ("create", 401, "hf auth login"),
        ("create", 403, "don't have the rights to create a model here; the token must have the right to write there"),
        ("commit", 403, "the token must have the right to write there"),
        ("preupload", 400, "(400)"),
    ],
)
def test_a_refusal_is_one_sentence(refused, status, reason, run, hub, tmp_path) -> None:
    hub.refuse = refused, status
    done = push(run, "me/ants", HF_TOKEN="hf_secret", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert f"refuses me/ants ({status})" in done.stderr
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hf_secret" not in done.stderr
    assert hub.committed == {}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "no Hugging Face token; log in once with: hf auth login, or set HF_TOKEN"),
        ({"HF_TOKEN": "x", "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids the network"),
        ({"HF_TOKEN": "x"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_without_token_or_network_it_says_so(environment, reason, run, tmp_path) -> None:
    done = push(run, "me/ants", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), **environment)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_card_names_no_place_and_no_file_that_stays_here(tiny_data, tmp_path) -> None:
    weights = tmp_path / "secret" / "mine.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(BUNDLED.read_bytes())
    config = small(tiny_data, tmp_path / "run", model=ModelConfig(weights=str(weights)))
    folder = start(replace(config, runtime=replace(config.runtime, bank=str(tmp_path / "secret" / "bank"))))
    package = prepare(folder, REPO, with_pictures=True)
    sent = {upload.name: upload.read() for upload in package.uploads}
    assert sent.keys() == SENT
    for name, content in sent.items():
        for place in (str(tmp_path), str(tiny_data)):
            assert place.encode() not in content, (name, place)
    card = sent["README.md"].decode()
    assert f'`data.root` "{tiny_data.name}"' in card
    assert '`model.weights` "mine.safetensors"' in card
    assert "hf download me/ants model.safetensors --local-dir run\nheadstart predict run IMAGES..." in card
    for name in package.left_out:
        assert name.rstrip("/") not in card, name


def test_places_are_taken_out_of_texts_and_a_model_file_that_names_one_is_refused(run, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "config.yaml").write_text("data: {root: /home/me/ants/}\nmodel: {weights: weights/w.pth}\n")
    text = "on /home/me/ants/val and '/home/me/ants', not /home/me/antsy, from weights/w.pth, in {}"
    for name in ("README.md", "report.html"):
        (folder / name).write_text(text.format(folder))
    sent = {upload.name: upload.read() for upload in prepare(folder, REPO, with_pictures=False).uploads}
    for name in ("README.md", "report.html"):
        assert sent[name] == b"on ants/val and 'ants', not /home/me/antsy, from w.pth, in run"
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        header = file.metadata() | {"headstart.weights": '"/home/me/w.pth"'}
    save_tensors(folder / "model.safetensors", load_file(folder / "model.safetensors"), header)
    with pytest.raises(InputError, match=r"model.safetensors says where its weights lay on this machine"):
        prepare(folder, REPO, with_pictures=False)


def test_what_cannot_be_pushed_is_refused_first(run, tmp_path) -> None:
    for repo in ("", "a/b/c", "a b", "-a/b", "a--b", "a/", "../x", "a/b.", "https://huggingface.co/a/b"):
        with pytest.raises(InputError, match="is no name of a repository"):
            push_command(str(run), repo, private=False, dry_run=True, with_pictures=False)
    with pytest.raises(InputError, match=r"has no model.safetensors"):
        prepare(tmp_path, REPO, with_pictures=False)
    write_model(tmp_path / "unfinished")
    with pytest.raises(InputError, match=r"has no README.md"):
        prepare(tmp_path / "unfinished", REPO, with_pictures=False)
