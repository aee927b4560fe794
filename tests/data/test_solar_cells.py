"""The demo data: solar cells as an image folder, whole or not at all."""

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.data.solar_cells import write_solar_cells
from headstart.errors import InputError

pytest.importorskip("elpv_dataset", reason="DEMO DATA NOT TESTED: pip install 'headstart[demo]'")

COUNTS = {"train/functional": 1352, "train/defective": 616, "val/functional": 451, "val/defective": 205}


@pytest.fixture(scope="module")
def solar_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "deep" / "solar"
    assert write_solar_cells(target) == COUNTS
    return target


def test_the_folder_holds_what_was_counted(solar_cells: Path) -> None:
    found = Counter(path.parent.relative_to(solar_cells).as_posix() for path in solar_cells.rglob("*.png"))
    assert found == COUNTS


def test_the_table_names_every_image_with_its_probability_and_type(solar_cells: Path) -> None:
    with (solar_cells / "labels.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 2624
    for row in rows:
        assert (solar_cells / row["path"]).is_file()
        assert (float(row["defect_probability"]) > 0.5) == ("/defective/" in row["path"])
    assert {row["cell_type"] for row in rows} == {"mono", "poly"}


def test_both_cell_types_are_split_alike(solar_cells: Path) -> None:
    with (solar_cells / "labels.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for cell_type in ("mono", "poly"):
        parts = [row["path"].split("/")[0] for row in rows if row["cell_type"] == cell_type]
        assert abs(parts.count("val") / len(parts) - 0.25) < 0.005


def test_nothing_but_the_folder_is_written(solar_cells: Path) -> None:
    assert sorted(path.name for path in solar_cells.parent.iterdir()) == ["solar"]
    assert sorted(path.name for path in solar_cells.iterdir()) == ["labels.csv", "train", "val"]


def test_a_second_time_changes_nothing(solar_cells: Path) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in solar_cells.rglob("*")}

    before = stamps()
    assert write_solar_cells(solar_cells) == COUNTS
    assert stamps() == before


def test_the_demo_data_of_another_seed_are_not_taken_for_these(solar_cells: Path) -> None:
    with pytest.raises(ValueError, match="seed 1"):
        write_solar_cells(solar_cells, seed=1)


def test_an_incomplete_folder_is_refused(solar_cells: Path) -> None:
    victim = next(solar_cells.rglob("*.png"))
    moved = victim.rename(victim.with_suffix(".moved"))
    try:
        with pytest.raises(ValueError, match="demo data"):
            write_solar_cells(solar_cells)
    finally:
        moved.rename(victim)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(InputError, match="mine"):
        write_solar_cells(tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copyfile: Callable[..., object] = shutil.copyfile
    done = []

    def copy_until_the_disk_is_full(*args: object) -> object:
        if len(done) == 30:
            raise OSError(28, "No space left on device")
        done.append(args)
        return copyfile(*args)

    monkeypatch.setattr(shutil, "copyfile", copy_until_the_disk_is_full)
    with pytest.raises(InputError, match="No space left"):
        write_solar_cells(tmp_path / "solar")
    assert list(tmp_path.iterdir()) == []


def test_part_of_the_images_has_the_shares_of_all(solar_cells: Path, tmp_path: Path) -> None:
    counts = write_solar_cells(tmp_path / "part", images=800, val_fraction=0.5)
    assert counts == {"train/functional": 275, "train/defective": 125, "val/functional": 275, "val/defective": 125}
    with (tmp_path / "part" / "labels.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    with (solar_cells / "labels.csv").open(encoding="utf-8") as lines:
        of_all = Counter(row["cell_type"] for row in csv.DictReader(lines))
    assert len(rows) == 800
    assert Counter(row["cell_type"] for row in rows)["mono"] / 800 == pytest.approx(of_all["mono"] / 2624, abs=0.005)
    with pytest.raises(InputError, match="seed 0 with these options"):
        write_solar_cells(tmp_path / "part", images=900, val_fraction=0.5)
