"""`model.weights auto`: decided once per run, and written down by name everywhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.runs import small, summary

from headstart.errors import InputError
from headstart.model import weight_sources
from headstart.model.model_file import read_info
from headstart.training.run import run


@pytest.fixture
def decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were tried. None of them can be reached, and no weights are cached."""
    tried: list[str] = []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weight_sources, "reachable", lambda url: bool(tried.append(url)))
    return tried


def weights_in(folder: Path) -> str:
    return yaml.safe_load((folder / "config.yaml").read_text())["model"]["weights"]


@pytest.mark.parametrize("strategy", ["frozen_head", pytest.param("fine_tune", marks=pytest.mark.slow)])
def test_the_name_of_the_weights_that_were_used_is_in_every_file(
    strategy: str, tiny_data: Path, tmp_path: Path, decisions: list[str]
) -> None:
    config = small(tiny_data, tmp_path / "run", strategy=strategy, model={"weights": "auto"}, train={"epochs": 1})
    config = replace(config, runtime=replace(config.runtime, bank=str(tmp_path / "bank")))
    folder = run(config)
    assert len(decisions) == 1
    assert (
        weights_in(folder) == summary(folder)["weights"] == read_info(folder / "model.safetensors").weights == "bundled"
    )
    assert "bundled" in (folder / "README.md").read_text()
    # a finished run that is started again does not decide again
    assert run(replace(config, train=replace(config.train, resume="auto"))) == folder
    with pytest.raises(InputError, match=r"model\.weights none \(was bundled\)"):
        run(replace(config, train=replace(config.train, resume="auto"), model=replace(config.model, weights="none")))
    assert len(decisions) == 1


def test_an_interrupted_run_keeps_its_weights(tiny_data: Path, tmp_path: Path, decisions: list[str]) -> None:
    config = small(tiny_data, tmp_path / "run", strategy="frozen_head", model={"weights": "none"})
    config = replace(config, runtime=replace(config.runtime, bank=str(tmp_path / "bank")))
    folder = run(config)
    for name in ("summary.json", "model.safetensors"):  # as if it had been killed before its end
        (folder / name).unlink()
    for path in folder.iterdir():
        if path.name not in ("config.yaml", "checkpoints"):
            path.unlink()
    again = replace(config, model=replace(config.model, weights="auto"), train=replace(config.train, resume="auto"))
    run(again)
    assert weights_in(folder) == summary(folder)["weights"] == "none"
    assert decisions == []


@pytest.mark.slow
def test_all_folds_have_the_weights_of_the_first_decision(
    tiny_data: Path, tmp_path: Path, decisions: list[str]
) -> None:
    config = small(tiny_data, tmp_path / "runs", strategy="frozen_head", model={"weights": "auto"}, train={"folds": 2})
    config = replace(config, runtime=replace(config.runtime, bank=str(tmp_path / "bank")))
    folder = run(config)
    assert len(decisions) == 1
    assert [weights_in(path) for path in (folder, folder / "fold_0", folder / "fold_1")] == 3 * ["bundled"]
    run(replace(config, train=replace(config.train, resume="auto")))
    assert len(decisions) == 1
