"""Several processes fill one bank, each its share, and one solves for the head."""

import json
from dataclasses import replace

import pytest
from support.extractions import four_extractions
from support.processes import torchrun
from support.runs import small, summary

from headstart.config_io import to_yaml
from headstart.training.run import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_the_processes_agree_between_batches_and_not_at_the_end_of_their_shares(tiny_data, tmp_path):
    done = torchrun(2, str(tiny_data), cwd=tmp_path, work=four_extractions).finish()
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    share = 26  # batches of one image
    assert first["one image"] == ["filled", "(1, 512)", 1]
    assert second["one image"] == ["filled", "(1, 512)", 0]
    for name, raised, fragment, most in (
        ("broken", "InputError", "[Errno 5] Input/output error", 2),
        ("stopped", "Stopped", str(tmp_path / "stopped"), 4),  # where the features are that were finished
    ):
        assert first[name][0] == second[name][0] == raised
        assert fragment in first[name][1]
        assert fragment in second[name][1]
        assert 1 <= first[name][2] <= most < share, (name, first[name])
    assert len(list((tmp_path / "stopped").glob("*/*.safetensors"))) == 2  # one merged file of each process
    assert first["late"] == second["late"] == ["filled", "(51, 512)", 0]


def test_two_processes_share_the_extraction_and_end_with_the_file_of_one(tiny_data, tmp_path):
    config = small(
        tiny_data, tmp_path / "one", strategy="frozen_head", runtime={"bank": str(tmp_path / "a"), "cpu": True}
    )
    config = replace(config, strategy=replace(config.strategy, features="bank"))
    single = run(config)
    two = replace(config, out=str(tmp_path / "two"), runtime=replace(config.runtime, bank=str(tmp_path / "b")))
    (tmp_path / "config.yaml").write_text(to_yaml(two))
    done = torchrun(2, "train", "--config", tmp_path / "config.yaml", cwd=tmp_path).finish()
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "b").glob("*/*.safetensors"))) == 2  # one merged file of each process
    found = summary(tmp_path / "two")
    assert found["features"]["computed"] == 51
    assert found["world_size"] == 2
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
