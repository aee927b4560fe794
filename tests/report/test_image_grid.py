"""Grids of images with titles, as train_batch.png and val_predictions.png show them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.report.image_grid import BAD, COLUMNS, GAP_PX, GOOD, TILE_PX, image_grid, tiles_of


def drawn(path: Path, titles: list[str], colors: list[str] | None = None) -> np.ndarray:
    """(height, width, 3) uint8: a grid of black images."""
    image_grid(path, [torch.zeros(3, 8, 8, dtype=torch.uint8)] * len(titles), titles, colors)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_grid_has_rows_of_six_and_frames_in_the_color_of_the_title(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "grid.png", ["a"] * 7, [GOOD] * 6 + [BAD])
    assert pixels.shape[1] == COLUMNS * (TILE_PX + GAP_PX) + GAP_PX
    height = (pixels.shape[0] - GAP_PX) // 2
    frames = [tuple(pixels[GAP_PX - 2 + row * height, GAP_PX + 20]) for row in (0, 1)]
    assert frames == [(0x1A, 0x7F, 0x37), (0xCF, 0x22, 0x2E)]


def test_the_images_and_titles_of_a_grid_can_be_read_again(tmp_path: Path) -> None:
    titles = [f"name {number} – 猫\nx" for number in range(8)]
    images = [torch.full((3, TILE_PX, TILE_PX), 20 * number, dtype=torch.uint8) for number in range(8)]
    image_grid(tmp_path / "grid.png", images, titles)
    found = tiles_of(tmp_path / "grid.png")
    assert [title for title, _ in found] == titles
    assert [np.unique(np.asarray(image)).tolist() for _, image in found] == [[20 * number] for number in range(8)]


def test_a_grid_without_titles_in_the_file_is_one_image(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "old.png")
    ((title, image),) = tiles_of(tmp_path / "old.png")
    assert title == ""
    assert image.size == (50, 40)


def test_without_colors_there_are_no_frames(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "grid.png", ["a", "b"])
    assert (pixels[:GAP_PX] == 255).all()


@pytest.mark.parametrize("name", ["猫", "кошка", "قط", "แมว", "고양이", "🐈", "\udc80", "café", "a\tb", "", "x" * 500])
def test_a_class_name_of_any_script_is_drawn(name: str, tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "grid.png", [f"{name}\nx"])
    assert pixels.shape[:2] == drawn(tmp_path / "plain.png", ["a\nx"]).shape[:2]


def test_names_that_the_font_lacks_stay_distinguishable(tmp_path: Path) -> None:
    names = ["猫", "犬", "кошка", "собака", "Ærø", "Øre"]
    grids = {drawn(tmp_path / "grid.png", [name]).tobytes() for name in names}
    assert len(grids) == len(names)
    assert np.array_equal(drawn(tmp_path / "a.png", ["café Łódź"]), drawn(tmp_path / "b.png", ["cafe \\u0141odz"]))
