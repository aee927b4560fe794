"""hf://NAME: fetched from the Hub because it was asked for, unless the user forbids the network."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from support.hub import REPOSITORY_ID, serving
from support.layouts import as_parquet_shards

from headstart.config import DataConfig
from headstart.data.sources.open import open_source
from headstart.errors import InputError


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_fetched_when_its_name_is_given(tiny_data: Path, tmp_path: Path) -> None:
    """In a process of its own: the libraries read the environment when they are imported."""
    (tmp_path / "shards").mkdir()
    as_parquet_shards(tiny_data, tmp_path / "shards")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    with serving(tmp_path / "shards") as hub:
        done = subprocess.run(
            [sys.executable, "-m", "headstart", "data", "check", f"hf://{REPOSITORY_ID}"],
            env=environment | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "51 usable images" in done.stdout
        assert any(request.startswith("GET /datasets/me/drawn/resolve/") for request in hub.requests)


@pytest.mark.parametrize("root", ["hf://me/drawn", "hf://datasets/me/drawn"])
def test_a_local_folder_of_the_same_name_is_not_the_dataset(root: str, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def load(name: str) -> None:
        asked.append(name)
        raise ConnectionError("no network here")

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        with pytest.raises(InputError) as caught:
            open_source(DataConfig(root=root))
        for fragment in (root, "no network here", "hf auth login"):
            assert fragment in str(caught.value)
        (tmp_path / "me" / "drawn").mkdir(parents=True, exist_ok=True)
        assert asked[number] == ("me/drawn", "hf://datasets/me/drawn")[number]


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_where_the_user_forbids_the_network_the_variable_is_named(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # as it is when imported with the variable set
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError) as caught:
        open_source(DataConfig(root=f"hf://{REPOSITORY_ID}"))
    assert f"hf://{REPOSITORY_ID}" in str(caught.value)
    assert f"{name}=1" in str(caught.value)
