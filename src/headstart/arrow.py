"""Arrow columns built from buffers: for Python lists pyarrow imports pandas, which takes longer."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def strings(values: Sequence[str]) -> pa.Array:
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def lists(rows: np.ndarray) -> pa.Array:
    """(n, k) float64 -> n lists of k float64."""
    num_rows, width = rows.shape
    flat = np.ascontiguousarray(rows, dtype=np.float64)
    offsets = np.arange(num_rows + 1, dtype=np.int32) * np.int32(width)
    items = pa.Array.from_buffers(pa.float64(), flat.size, [None, pa.py_buffer(flat)])
    return pa.Array.from_buffers(pa.list_(pa.float64()), num_rows, [None, pa.py_buffer(offsets)], children=[items])
