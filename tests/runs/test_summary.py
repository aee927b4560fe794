"""summary.json: the typed summary is what the file holds, and a file of another shape is refused."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from headstart.errors import InputError
from headstart.runs.folder import RunFolder
from headstart.runs.summary import SUMMARY, Summary

VALUES = {
    "strategy": "frozen_head",
    "backbone": "resnet18",
    "classes": ["a", "b"],
    "train": {"n": 2},
    "val": {"n": 1},
    "best_epoch": 1,
    "epochs": 1,
    "wall_s": 1,
    "train_images_per_s": None,
    "world_size": 1,
    "device": "cpu",
    "mixed_precision": "no",
    "seed": 0,
    "weights": "none",
    "weights_sha256": None,
    "manifest_sha256": "m",
    "model_sha256": "h",
    "skipped": [],
    "versions": {},
    "calibration": {},
}


def test_what_is_written_is_read_again_and_optional_fields_are_left_out(tmp_path: Path) -> None:
    summary = Summary(**VALUES)  # type: ignore[arg-type]
    summary.write(RunFolder(tmp_path))
    written = json.loads((tmp_path / SUMMARY).read_text())
    assert written == VALUES
    assert Summary.read(tmp_path) == summary
    assert {field.name for field in fields(Summary)} - written.keys() == {"probe", "features", "finished", "test"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_epoch", "1"),
        ("best_epoch", True),
        ("val", None),
        ("classes", {}),
        ("wall_s", None),
        ("weights_sha256", 3),
        ("probe", []),
        ("epochs", 1.5),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object, tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps(VALUES | {name: value}))
    with pytest.raises(InputError, match=rf"{SUMMARY}.*{name}"):
        Summary.read(tmp_path)


@pytest.mark.parametrize("name", VALUES)
def test_a_missing_value_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps({key: value for key, value in VALUES.items() if key != name}))
    with pytest.raises(InputError, match=rf"{SUMMARY}.*{name}"):
        Summary.read(tmp_path)
