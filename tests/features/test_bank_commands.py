"""headstart data bank, headstart bench features."""

import re

import pytest
from support.bank import extract

from headstart.backbones import RESNET18
from headstart.cli.main import main
from headstart.diagnostics import bench_features
from headstart.model.weights import load_weights


def exit_code(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return int(end.value.code or 0)


def test_the_commands_list_and_prune(tiny_data, tmp_path, capsys) -> None:
    bank = tmp_path / "bank"
    weights = load_weights("bundled", RESNET18).tensors
    assert weights is not None
    _, _, stored = extract(tiny_data, bank, weights)
    assert exit_code("data", "bank", "--bank", bank) == 0
    listed = capsys.readouterr().out
    assert re.search(r"\b1 key", listed)
    assert "32 px" in listed
    key = stored.path.name
    assert exit_code("data", "bank", "--bank", bank, "--prune", "nothing") == 2
    assert exit_code("data", "bank", "--bank", bank, "--prune_unused", 1) == 0
    assert exit_code("data", "bank", "--bank", bank, "--prune", key[:6]) == 0
    assert list(bank.iterdir()) == []


@pytest.mark.slow
def test_the_benchmark_compares_with_the_rate_in_memory(image_folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench_features, "ROUND_S", 0.2)
    data = str(image_folder(train=4, val=2))
    bench_features.bench_features(
        data, backbone="resnet18", weights_source="bundled", precision="bf16", rounds=1, image_size=32
    )
    printed = capsys.readouterr().out
    assert "18 images" in printed
    assert "in-memory" in printed
    assert re.search(r"cosine.*0\.999", printed)


def test_the_benchmark_names_a_missing_folder(tmp_path, capsys) -> None:
    assert exit_code("bench", "features", "--data", tmp_path / "nowhere", "--rounds", 1) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
