"""The tutorials' ants and bees; skipped where they are not at hand."""

import json

import pytest
from support.runs import small

from headstart.training.run import run


@pytest.mark.slow
def test_a_run_on_ants_and_bees_names_the_placeholder_and_beats_guessing(ants_and_bees, tmp_path, capsys):
    config = small(
        ants_and_bees,
        tmp_path / "run",
        strategy="frozen_head",
        data={"image_size": 96},
        train={"epochs": 2, "batch_size": 32, "eval_batch_size": 64},
        runtime={"mixed_precision": "auto"},
        optim={"lr": 0.05},
    )
    summary = json.loads((run(config) / "summary.json").read_text())
    said = capsys.readouterr().out
    for fragment in ("244 training", "153 validation", "2 classes", "train/ants/imageNotFound.gif"):
        assert fragment in said
    assert summary["skipped"][0]["path"] == "train/ants/imageNotFound.gif"
    assert summary["classes"] == ["ants", "bees"]
    assert summary["val"]["n"] == 153
    assert summary["val"]["accuracy_ci95"][0] > 0.5
