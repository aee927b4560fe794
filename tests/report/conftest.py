"""One training run that all tests of the report read."""

from pathlib import Path

import pytest
from support.runs import small

from headstart.training.run import run


@pytest.fixture(scope="session")
def folder(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that makes mistakes. Shared: do not write in it."""
    out = tmp_path_factory.mktemp("report") / "run"
    return run(small(tiny_data, out, strategy="frozen_head", optim={"lr": 1e-4}))
