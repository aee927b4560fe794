"""headstart push against a local substitute for the hub: it commits exactly the files that it printed."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, safe_open
from support.models import CLASSES, write_model
from support.runs import small

from headstart import InputError, ModelConfig
from headstart.cli.main import main
from headstart.exporters.hub import prepare, push_command
from headstart.model.header import read_fields
from headstart.model.model_file import save_tensors
from headstart.model.weights import BUNDLED
from headstart.training.run import run as start


class Hub(ThreadingHTTPServer):
    """The part of the hub's HTTP interface that one commit needs; keeps what it received."""

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
            self._answer({"error": f"unknown here: {self.path}"}, 404)

    do_GET = do_POST = do_PUT = _handle


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with every kind of file that a run folder holds."""
    folder = write_model(tmp_path_factory.mktemp("runs") / "run")
    (folder / "README.md").write_text("---\nlibrary_name: headstart\n---\n# ResNet-18\n")
    (folder / "report.html").write_text("<img src='data:image/svg+xml,...'>")
    for name in (
        "summary.json",
        "config.yaml",
        "manifest.parquet",
        "predictions.parquet",
        "train_batch.png",
        "val_predictions.png",
    ):
        (folder / name).write_text("{}")
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    (folder / "checkpoints" / "step_1" / "model.safetensors").write_bytes(b"x")
    return folder


REPO = "me/ants"
SENT = {"README.md", "config.json", "model.safetensors", "report.html"}


def push(*argv: object, **environment: str) -> subprocess.CompletedProcess:
    """In a process of its own, because huggingface_hub reads the environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "headstart", "push", *map(str, argv)],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def push_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """push_here(arguments, HF_...=...): exit code, output and errors of the same command in this process, where
    huggingface_hub has read the environment long ago."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
        monkeypatch.delenv(name)

    def push(*argv: object, **environment: str) -> tuple[int, str, str]:
        for name, value in {"HF_HUB_OFFLINE": "0", **environment}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main(["push", *map(str, argv)])
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    shown_before = not are_progress_bars_disabled()
    disable_progress_bars()
    yield push
    if shown_before:
        enable_progress_bars()


def shown(printed: str) -> dict[str, tuple[int, str]]:
    """Of each file with a SHA-256 in the output: name -> (bytes, sha256)."""
    rows = [re.match(r"\s*(\S+)\s+([\d,]+) .*\b([0-9a-f]{64})\b", line) for line in printed.splitlines()]
    return {row[1]: (int(row[2].replace(",", "")), row[3]) for row in rows if row}


@pytest.mark.slow
def test_the_files_that_are_printed_are_the_files_that_are_committed(run, hub, tmp_path) -> None:
    done = push(run, "me/ants", "--private", HF_TOKEN="hf_secret", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert hub.committed.keys() == SENT
    found = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in hub.committed.items()}
    assert shown(done.stdout) == found
    assert hub.committed["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert hub.repo.get("private") is True or hub.repo.get("visibility") == "private"  # by its version
    assert {token for _, path, token in hub.requests if path.startswith("/api/")} == {"Bearer hf_secret"}
    assert "hf_secret" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(f"{hub.url}/me/ants/commit/{'f' * 40}")


def test_a_dry_run_prints_the_same_and_sends_nothing(run, hub, push_here) -> None:
    code, printed, _ = push_here(run, "me/ants", "--dry-run", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert code == 0
    assert hub.requests == []
    assert shown(printed).keys() == SENT
    for name in (
        "checkpoints/",
        "manifest.parquet",
        "predictions.parquet",
        "train_batch.png",
        "val_predictions.png",
        "config.yaml",
    ):
        assert f"  {name} " in printed


def test_config_json_names_the_classes_in_order(run) -> None:
    uploads = {upload.name: upload for upload in prepare(run, REPO, with_pictures=False).uploads}
    config = json.loads(uploads["config.json"].content)
    assert [config["id2label"][str(code)] for code in range(3)] == list(CLASSES)
    assert [config["label2id"][name] for name in CLASSES] == [0, 1, 2]
    assert config["preprocess"] == read_fields(run / "model.safetensors")[0]["preprocess"]


def test_a_report_with_images_of_the_data_is_sent_only_on_request(run, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "report.html").write_text("<img src='data:image/jpeg;base64,/9j'><img src=\"DATA:image/png;base64,iV\">")
    package = prepare(folder, REPO, with_pictures=False)
    assert {upload.name for upload in package.uploads} == SENT - {"report.html"}
    assert re.search(r"\b2\b.*--with_pictures", package.left_out["report.html"])
    assert {upload.name for upload in prepare(folder, REPO, with_pictures=True).uploads} == SENT
    (folder / "report.html").rename(folder / "other.html")
    (folder / "report.html").symlink_to(folder / "other.html")
    assert "report.html" in prepare(folder, REPO, with_pictures=True).left_out


@pytest.mark.parametrize(
    ("refused", "status", "fragments"),
    [
        ("create", 401, ["hf auth login"]),
        ("create", 403, ["don't have the rights to create a model here", "token"]),
        ("commit", 403, ["token"]),
        ("preupload", 400, []),
    ],
)
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of its own HTTP library
def test_a_refusal_by_the_hub_is_reported_in_one_line(refused, status, fragments, run, hub, push_here) -> None:
    hub.refuse = refused, status
    code, _, error = push_here(run, "me/ants", HF_TOKEN="hf_secret", HF_ENDPOINT=hub.url)
    assert code == 2, error
    for fragment in (hub.url, "me/ants", str(status), *fragments):
        assert fragment in error
    assert error.count("\n") == 1
    assert "hf_secret" not in error
    assert hub.committed == {}


@pytest.mark.parametrize(
    ("environment", "fragments"),
    [
        ({}, ["hf auth login", "HF_TOKEN"]),
        ({"HF_TOKEN": "x", "HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE", "--dry-run"]),
        ({"HF_TOKEN": "x"}, ["http://127.0.0.1:9"]),
    ],
)
def test_a_missing_token_or_network_is_reported_in_one_line(environment, fragments, run, push_here) -> None:
    code, _, error = push_here(run, "me/ants", HF_ENDPOINT="http://127.0.0.1:9", **environment)
    assert code == 2, error
    for fragment in fragments:
        assert fragment in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_card_names_no_local_path_and_no_file_that_is_not_sent(tiny_data, tmp_path) -> None:
    weights = tmp_path / "secret" / "mine.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(BUNDLED.read_bytes())
    config = small(tiny_data, tmp_path / "run", model=ModelConfig(weights=str(weights)), train={"epochs": 1})
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


def test_local_paths_are_removed_from_texts_and_a_model_file_that_has_one_is_refused(run, tmp_path) -> None:
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
    with pytest.raises(InputError, match=re.escape(str(folder / "model.safetensors"))):
        prepare(folder, REPO, with_pictures=False)


def test_a_bad_repository_name_or_an_unfinished_run_is_refused_first(run, tmp_path) -> None:
    for repo in ("", "a/b/c", "a b", "-a/b", "a--b", "a/", "../x", "a/b.", "https://huggingface.co/a/b"):
        with pytest.raises(InputError, match="your-name/ants-and-bees"):
            push_command(str(run), repo, private=False, dry_run=True, with_pictures=False)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        prepare(tmp_path, REPO, with_pictures=False)
    write_model(tmp_path / "unfinished")
    with pytest.raises(InputError, match=r"README\.md"):
        prepare(tmp_path / "unfinished", REPO, with_pictures=False)
