"""What `headstart choose` keeps of a candidate, so that an interrupted command continues: a file with its features."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from headstart.features.cross_validation import COARSE_GRID
from headstart.files import write_atomically
from headstart.selection.nested import Probe
from headstart.selection.speed import Size

_SCHEMA = 1


def file_of(folder: Path, contents: Sequence[str], labels: np.ndarray, fold_of: np.ndarray) -> Path:
    """The file for these images, labels and folds, in the folder of the features of a candidate."""
    question = [_SCHEMA, list(COARSE_GRID), list(contents), labels.tolist(), fold_of.tolist()]
    return folder / f"choose-{hashlib.sha256(json.dumps(question).encode()).hexdigest()[:16]}.npz"


def read(path: Path, *, machine: str) -> tuple[Probe | None, Size | None]:
    """What is stored; None for what is not, or cannot be read, or was measured on another machine."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            probe = Probe(**{field.name: content[field.name] for field in fields(Probe)})
            size, measured_on = json.loads(str(content["size"])), str(content["machine"])
        return probe, Size(**size) if measured_on == machine else None
    except Exception:  # damaged in one of many ways: computed again
        return None, None


def write(path: Path, probe: Probe, size: Size, *, machine: str) -> None:
    """machine: on which the speed was measured."""
    buffer = io.BytesIO()
    arrays = {field.name: getattr(probe, field.name) for field in fields(Probe)}
    np.savez_compressed(buffer, **arrays, size=np.array(json.dumps(asdict(size))), machine=np.array(machine))
    write_atomically(path, lambda staging: staging.write_bytes(buffer.getvalue()))
