"""One shard of a feature bank: a safetensors file of features and the names of their rows, with a checksum."""

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from headstart.files import write_atomically
from headstart.tensor_file import read_header

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
    header = read_header(path)
    shapes = {name: (entry["dtype"], *entry["shape"]) for name, entry in header.tensors.items()}
    num_rows = shapes.get("names", ("", 0))[1]
    if shapes != {"features": ("F32", num_rows, width), "names": ("U8", num_rows, NAME_BYTES)}:
        raise ValueError(f"it holds {shapes} instead of features of width {width} and their names")
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    start, split = header.start, header.start + num_rows * width * 4
    if hashlib.sha256(whole[start:].data).hexdigest() != header.metadata.get("sha256"):
        raise ValueError("the checksum does not match")
    features = whole[start:split].view("<f4").reshape(num_rows, width)
    packed = whole[split:].tobytes()
    return [packed[at : at + NAME_BYTES] for at in range(0, len(packed), NAME_BYTES)], features
