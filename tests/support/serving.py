"""A small model behind a real socket, and what its clients send."""

import io
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import headstart
from headstart.backbones import RESNET18
from headstart.data.transforms import Preprocess
from headstart.model.calibration import Calibration
from headstart.model.conformal import fit_conformal
from headstart.model.model_file import ModelInfo, save_model_tensors
from headstart.model.open_set import fit_open_set
from headstart.model.weights import load_weights
from headstart.predict.predictor import Predictor
from headstart.serve.app import build_app
from headstart.serve.engine import Engine
from headstart.serve.limits import Limits
from headstart.serve.server import Server, listen

BYTES = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    """A server in this process."""

    port: int
    engine: Engine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, target, body, dict(headers or {}), encode_chunked=_is_chunked(headers))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def predict(self, image: bytes, query: str = "") -> Reply:
        return self.ask("POST", f"/predict{query}", image, BYTES)


def _is_chunked(headers: Mapping[str, str] | None) -> bool:
    return (headers or {}).get("Transfer-Encoding") == "chunked"


@contextmanager
def running(predictor: Predictor, *, names: tuple[str, ...] = (), **limits: Any) -> Iterator[Running]:
    chosen = Limits(**limits)
    engine = Engine(predictor, limits=chosen, threads=1)
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = Server(build_app(engine, limits=chosen, names=names), listening, limits=chosen)
    server.thread.start()
    try:
        yield Running(port, engine)
    finally:
        server.stop()
        engine.close()


def begin(port: int, *, declared: int, sent: bytes) -> socket.socket:
    """A request of so many bytes, of which only these have been sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {declared}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def received(connection: socket.socket) -> bytes:
    """All until the server closes or the answer to one request is complete."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if lengths and len(body) >= int(lengths[0].split(b":")[1]):
            break
    return data


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def form(files: list[tuple[str, bytes]], *, boundary: str = "cut") -> tuple[bytes, dict[str, str]]:
    """multipart/form-data of files, and its header."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode() + data
        for name, data in files
    ]
    body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


CLASSES = ("ants & bees", "<b>wasps</b>", "日本")


def write_model(path: Path, *, image_size: int = 64, calibration: Calibration | None = None) -> Path:
    """A model file of the bundled backbone with a random head, whose probabilities are far from 0 and 1."""
    backbone = load_weights("bundled", RESNET18).tensors
    assert backbone is not None
    chance = torch.Generator().manual_seed(3)
    head = {"fc.weight": torch.randn((3, 512), generator=chance) / 20, "fc.bias": torch.zeros(3)}
    info = ModelInfo(
        classes=CLASSES,
        preprocess=Preprocess(image_size, image_size * 8 // 7),
        strategy="frozen_head",
        mixed_precision="no",
        channels_last=True,
        eval_batch_size=8,
        measured_on="network",
        manifest_sha256="ab" * 32,
        weights="/secret/weights.safetensors",
        weights_sha256=None,
        seed=0,
        versions={},
        metrics={"val": {"accuracy": 0.75}},
        calibration=calibration,
    )
    save_model_tensors(path, {**backbone, **head}, info)
    return path


def calibration_of(model: Path, images: list[Path]) -> Calibration:
    """Fitted on these images, whose folders are taken for classes."""
    predictor = headstart.load(model)
    outputs = predictor.compute(torch.stack([predictor.transform(image) for image in images]))
    names = sorted({image.parent.name for image in images})
    labels = np.array([names.index(image.parent.name) for image in images])
    return Calibration(
        temperature=1.5,
        fitted_on="validation logits",
        n=len(images),
        conformal=fit_conformal(outputs.logits, labels, exact=True),
        open_set=fit_open_set(outputs.features, labels),
    )
