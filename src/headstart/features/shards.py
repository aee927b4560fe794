"""One shard of a feature bank: a safetensors file of features and the names of their rows, with a checksum."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from headstart.files import write_atomically

NAME_BYTES = 16
_SCHEMA = "1"


def write_shard(folder: Path, names: Sequence[bytes], features: np.ndarray) -> Path:
    """A new file in `folder`: features (n, width) float32, names (n, 16) uint8, and a sha256 of both in its header."""
    rows = np.ascontiguousarray(features, dtype="<f4")
    packed = np.frombuffer(b"".join(names), dtype=np.uint8).reshape(len(names), NAME_BYTES)
    checksum = hashlib.sha256(rows.tobytes() + packed.tobytes()).hexdigest()
    metadata = {"format": "pt", "schema": _SCHEMA, "sha256": checksum}
    content = save({"features": rows, "names": packed}, metadata)
    path = folder / f"{uuid.uuid4().hex}.safetensors"
    write_atomically(path, lambda staging: staging.write_bytes(content))
    return path


def read_shard(path: Path, *, width: int) -> tuple[list[bytes], np.ndarray]:
    """Names and memory-mapped features (n, width). Raises ValueError with the reason if the file is damaged."""
    if path.stat().st_size < 8:
        raise ValueError("truncated")
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    try:
        header = json.loads(whole[8:start].tobytes())
        num_rows, columns = header["features"]["shape"]
        expected = header["__metadata__"]["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("the header is damaged") from None
    split = start + num_rows * columns * 4
    if columns != width or len(whole) != split + num_rows * NAME_BYTES:
        raise ValueError(f"its {len(whole)} bytes do not match {num_rows} rows of {columns} numbers")
    if hashlib.sha256(whole[start:].data).hexdigest() != expected:
        raise ValueError("the checksum does not match")
    features = whole[start:split].view("<f4").reshape(num_rows, columns)
    packed = whole[split:].tobytes()
    return [packed[at : at + NAME_BYTES] for at in range(0, len(packed), NAME_BYTES)], features
