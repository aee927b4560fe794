"""A server of a folder, with the faults that servers have."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class FileServer(ThreadingHTTPServer):
    """ranges: whether parts of files are sent; length: whether Content-Length is; refusing: the status of all answers,
    0 for none; bytes_sent: of contents so far."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ranges, self.length, self.refusing, self.bytes_sent = True, True, 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        path = self.server.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        content = path.read_bytes() if path.is_file() else None
        if content is None or self.server.refusing:
            self.send_error(self.server.refusing or 404)
            return
        whole, wanted = len(content), self.headers.get("Range") if self.server.ranges else None
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{whole}")
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if self.server.length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content) if self.command == "GET" else 0, 65_536):
            self.wfile.write(content[start : start + 65_536])
            self.server.bytes_sent += len(content[start : start + 65_536])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


class _Quiet(FileServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up before the end of a file is no error."""


@contextmanager
def serving_files_of(folder: Path) -> Iterator[FileServer]:
    with _Quiet(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
