"""The metrics and pictures of a run on the feature bank, made in a second process or in this one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.training.metrics_process import Companion, InProcess, companion

EPOCHS = [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.1, "train_accuracy": 0.5, "val_accuracy": 0.4}] * 2


def made_by(measuring: Companion | InProcess, folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Metrics of drawn probabilities, and the pixels of two pictures."""
    rng = np.random.default_rng(0)
    numbers = measuring.measure(rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40))
    measuring.draw_curves(folder / "curves.png", EPOCHS)
    measuring.wait()
    scores = {"losses": [0.5, 0.4], "errors": [0.1, 0.1], "accuracies": [0.8, 0.9]}
    measuring.draw_selection(folder / "selection.png", l2=[1.0, 2.0], chosen=2.0, **scores)
    measuring.wait()
    pictures = [np.asarray(Image.open(folder / name)).ravel() for name in ("curves.png", "selection.png")]
    return numbers, np.concatenate(pictures)


@pytest.mark.slow
def test_a_second_process_gives_the_numbers_and_pictures_of_this_one(tmp_path: Path) -> None:
    numbers, pixels = made_by(InProcess(), tmp_path)
    with Companion() as second:
        others, other_pixels = made_by(second, tmp_path)
        second.draw_curves(tmp_path / "nowhere" / "curves.png", EPOCHS)
        with pytest.raises(RuntimeError, match=r"FileNotFoundError.*nowhere"):
            second.wait()
    assert numbers == others
    assert np.array_equal(pixels, other_pixels)
    assert isinstance(companion(), InProcess), "evaluate and matplotlib are imported now"
