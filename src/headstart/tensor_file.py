"""The header of a safetensors file, read and written without torch (https://github.com/huggingface/safetensors#format).

A file is the length of its header in 8 bytes, the header as JSON, and the bytes of the tensors one after the other.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100_000_000  # bytes; the safetensors library has the same limit
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
MALFORMED = (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError)
"""What reading an altered header may raise."""


@dataclass(frozen=True)
class Header:
    """metadata: strings by name; tensors: name -> dtype and shape, in the order of the header; start: byte at which the
    first tensor begins; num_bytes: of the whole file."""

    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]
    start: int
    num_bytes: int


def read_header(path: Path) -> Header:
    """The header, and not the tensors. Raises OSError, and ValueError with the reason for a file that is not whole: a
    length out of bounds, JSON of another form, a name twice, tensors that do not fill the file without gaps."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        content = file.read(length) if length <= LARGEST_HEADER else b""
        if content[:1] != b"{":
            raise ValueError("it does not begin with a header and its length")
        num_bytes = file.seek(0, 2)
    try:
        entries = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
        metadata = entries.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("the metadata are not strings")
        end = 8 + length + _tensor_bytes(entries)
    except MALFORMED as error:
        raise ValueError(str(error) or type(error).__name__) from None
    if num_bytes != end:
        raise ValueError(f"it has {num_bytes} bytes and should have {end}")
    tensors = {name: {"dtype": entry["dtype"], "shape": entry["shape"]} for name, entry in entries.items()}
    return Header(metadata, tensors, 8 + length, num_bytes)


def encode_header(entries: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file up to its first tensor. entries: dtype, shape and data_offsets by name."""
    header = {"__metadata__": dict(metadata), **entries}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = value
    return found


def _tensor_bytes(entries: Mapping[str, Any]) -> int:
    """Bytes of all tensors together. Raises ValueError for one that does not begin where the one before it ends."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        shape = entry["shape"]
        fits = isinstance(shape, list) and len(shape) <= 64 and all(type(s) is int and 0 <= s < 2**63 for s in shape)
        if not fits:
            raise ValueError(f"the shape of {name} is {ascii(shape)[:60]}")
        begin, end_here = entry["data_offsets"]
        if begin != end or end_here - begin != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
            raise ValueError(f"{name} does not lie where it should")
        end = end_here
    return end
