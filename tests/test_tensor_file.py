"""The header of safetensors files: written as the library reads it, and refused where the file is not whole."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from headstart.tensor_file import LARGEST_HEADER, encode_header, read_header

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(2, dtype=np.int64), "c": np.zeros((0, 4))}


def entry(dtype: str, shape: Any, begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(path: Path, header: str, payload: bytes = b"\0" * 8) -> Path:
    path.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + payload)
    return path


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a", metadata={"note": 'ä"\n'})
    header = read_header(tmp_path / "a")
    assert header.metadata == {"note": 'ä"\n'}
    assert {name: found["shape"] for name, found in header.tensors.items()} == {"a": [2, 3], "b": [2], "c": [0, 4]}
    assert header.num_bytes == (tmp_path / "a").stat().st_size == header.start + 6 * 4 + 2 * 8


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    start = encode_header({"a": entry("F32", [2, 3], 0, 24)}, {"note": "ä"})
    assert len(start) % 8 == 0
    (tmp_path / "a").write_bytes(start + TENSORS["a"].tobytes())
    assert np.array_equal(load_file(tmp_path / "a")["a"], TENSORS["a"])
    assert read_header(tmp_path / "a").metadata == {"note": "ä"}


EIGHT = entry("F32", [2], 0, 8)
REFUSED = {
    "a shape that is no list": {"x": EIGHT | {"shape": 2}},
    "a side below 0": {"x": EIGHT | {"shape": [-2, -1]}},
    "a side that is true": {"x": EIGHT | {"shape": [2, True]}},
    "sides without end": {"x": EIGHT | {"shape": [2**62] * 10_000}},
    "an unknown dtype": {"x": EIGHT | {"dtype": "F31"}},
    "a missing dtype": {"x": {"shape": [2], "data_offsets": [0, 8]}},
    "more numbers than bytes": {"x": EIGHT | {"shape": [3]}},
    "a gap": {"x": entry("U8", [2], 0, 2), "y": entry("U8", [5], 3, 8)},
    "an overlap": {"x": entry("U8", [5], 0, 5), "y": entry("U8", [5], 3, 8)},
    "bytes that nothing names": {"x": entry("U8", [7], 0, 7)},
    "bytes that are missing": {"x": entry("U8", [9], 0, 9)},
    "metadata that are no text": {"__metadata__": {"n": 3}, "x": EIGHT},
    "an entry that is none": {"x": 3},
    "a list": [EIGHT],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_does_not_describe_the_file_is_refused(name: str, tmp_path: Path) -> None:
    assert read_header(file_of(tmp_path / "good", json.dumps({"x": EIGHT}))).start > 8
    with pytest.raises(ValueError, match=r"."):
        read_header(file_of(tmp_path / "bad", json.dumps(REFUSED[name])))


@pytest.mark.parametrize("text", ['{"x": %s, "x": %s}', '{"__metadata__": {"n": "1", "n": "2"}, "x": %s}'])
def test_a_name_that_is_there_twice_is_refused(text: str, tmp_path: Path) -> None:
    whole = json.dumps(EIGHT)
    with pytest.raises(ValueError, match=re.escape("twice")):
        read_header(file_of(tmp_path / "a", text.replace("%s", whole)))


@pytest.mark.parametrize("length", [0, LARGEST_HEADER + 1, 2**63])
def test_a_length_out_of_bounds_is_refused_without_reading_so_much(length: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(length.to_bytes(8, "little") + b"{" * 100)
    with pytest.raises(ValueError, match="header"):
        read_header(tmp_path / "a")
