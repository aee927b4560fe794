"""A stand-in for the Hugging Face Hub on this machine that serves one repository."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPOSITORY_ID = "me/drawn"
REVISION = "a" * 40


class FakeHub(ThreadingHTTPServer):
    """files: of the repository, by name; repository: datasets/NAME for a dataset, NAME for a model. requests:
    "METHOD path" of all that was asked."""

    def __init__(self, files: dict[str, bytes], repository: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.repository = files, repository
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        api, resolve = f"/api/datasets/{REPOSITORY_ID}", f"/{self.server.repository}/resolve/"
        if path.startswith(resolve):
            name = path.removeprefix(resolve).partition("/")[2]
            if name in self.server.files:
                data = self.server.files[name]
                self._send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": REVISION})
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif path == api or path.startswith(f"{api}/revision/"):
            names = [{"rfilename": name} for name in self.server.files]
            self._send_json({"id": REPOSITORY_ID, "sha": REVISION, "private": False, "tags": [], "siblings": names})
        elif path.startswith(f"{api}/tree/{REVISION}"):
            below = path.removeprefix(f"{api}/tree/{REVISION}").lstrip("/")
            entries = [
                {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
                for name, data in self.server.files.items()
                if name.startswith(below)
            ]
            folders = [] if below else [{"type": "directory", "oid": "b" * 40, "size": 0, "path": "data"}]
            self._send_json(entries + folders)
        else:
            self._send(404, b"{}", {})

    do_HEAD = do_GET

    def _send_json(self, values: Any) -> None:
        self._send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def serving(folder: Path) -> AbstractContextManager[FakeHub]:
    """The parquet files of a folder as the dataset REPOSITORY_ID."""
    files = {f"data/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.parquet"))}
    return serving_files(files, f"datasets/{REPOSITORY_ID}")


@contextmanager
def serving_files(files: dict[str, bytes], repository: str) -> Iterator[FakeHub]:
    """repository: as in `FakeHub`."""
    with FakeHub(files, repository) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
