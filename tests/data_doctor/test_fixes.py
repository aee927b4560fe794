"""fixes.csv and the folder of links that is made from it; the user's files do not change."""

import csv
from pathlib import Path

import pytest

from headstart.data_doctor import fixes
from headstart.data_doctor.findings import Finding
from headstart.data_doctor.fixes import apply_fixes, write_fixes
from headstart.errors import InputError

FILES = ("train/a/1.png", "train/a/2.png", "train/b/3.png", "val/a/4.png", "notes.txt")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in (*FILES, ".hidden"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    return tmp_path / "data"


def table(folder: Path, *rows: tuple[str, str]) -> Path:
    path = folder / "fixes.csv"
    path.write_text("path,finding,suggestion\n" + "".join(f"{name},x,{what}\n" for name, what in rows))
    return path


def files(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_dropped_files_are_missing_and_moved_ones_lie_elsewhere(data, tmp_path):
    before = files(data)
    csv_file = table(
        tmp_path,
        ("train/a/1.png", "drop"),
        ("train/a/2.png", "move train/b"),
        ("train/b/3.png", "keep"),
        ("train/c", "keep"),
        ("val/a/4.png", "move? val/b"),
    )
    count = apply_fixes(csv_file, data=data, out=tmp_path / "new")
    assert files(tmp_path / "new") == {
        "train/b/2.png": "train/a/2.png",
        "train/b/3.png": "train/b/3.png",
        "val/a/4.png": "val/a/4.png",
        "notes.txt": "notes.txt",
    }
    assert list(count.values()) == [4, 0, 1, 1, 0, 1]
    assert (count["linked"], count["dropped"], count["moved"]) == (4, 1, 1)
    assert (tmp_path / "new/val/a/4.png").is_symlink()
    assert files(data) == before


def test_a_file_is_dropped_if_any_of_its_lines_drops_it(data, tmp_path):
    csv_file = table(tmp_path, ("val/a/4.png", "keep"), ("val/a/4.png", "drop"), ("val/a/4.png", "move val/b"))
    assert apply_fixes(csv_file, data=data, out=tmp_path / "new")["dropped"] == 1
    assert "val/a/4.png" not in files(tmp_path / "new")


def test_files_are_copied_if_links_cannot_be_made(data, tmp_path, monkeypatch):
    def refuse(self: Path, target: Path) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert apply_fixes(table(tmp_path), data=data, out=tmp_path / "new")["copied"] == 5
    assert not (tmp_path / "new/val/a/4.png").is_symlink()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("train/a/1.png", "delete")], "line 2.*delete.*keep, drop or move FOLDER"),
        ([("train/a/1.png", "move")], "line 2.*keep, drop or move FOLDER"),
        ([("train/a/9.png", "drop")], r"line 2.*'train/a/9\.png'"),
        ([("train/a", "drop")], "line 2.*'train/a'.*folder"),
        ([("train/a/1.png", "move ../elsewhere")], r"line 2.*\.\./elsewhere"),
        ([("train/a/1.png", "move /etc")], "line 2.*/etc"),
        ([("train/a/1.png", "move x"), ("train/a/1.png", "move y")], r"line 3.*train/a/1\.png"),
        ([("train/a/1.png", "move train/b/3.png")], r"train/b/3\.png"),
        ([("../fixes.csv", "drop")], r"line 2.*\.\./fixes\.csv"),
    ],
)
def test_a_line_that_cannot_be_applied_leaves_nothing_behind(data, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        apply_fixes(table(tmp_path, *rows), data=data, out=tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "fixes.csv"]


def test_two_files_cannot_have_one_place(data, tmp_path):
    (data / "train/b/1.png").write_text("another")
    with pytest.raises(InputError, match=r"train/b/1\.png"):
        apply_fixes(table(tmp_path, ("train/a/1.png", "move train/b")), data=data, out=tmp_path / "new")


def test_places_that_exist_or_lie_in_the_data_are_refused(data, tmp_path):
    (tmp_path / "old").mkdir()
    for out, message in ((tmp_path / "old", "old"), (data / "new", "data/new.*inside")):
        with pytest.raises(InputError, match=message):
            apply_fixes(table(tmp_path), data=data, out=out)
    with pytest.raises(InputError, match="nowhere"):
        apply_fixes(table(tmp_path), data=tmp_path / "nowhere", out=tmp_path / "new")


def test_a_full_disk_half_way_leaves_no_folder(data, tmp_path, monkeypatch):
    def full(source: Path, place: Path) -> str:
        if place.name == "3.png":
            raise OSError(28, "No space left on device")
        return link(source, place)

    link = fixes._link
    monkeypatch.setattr(fixes, "_link", full)
    with pytest.raises(InputError, match="No space left"):
        apply_fixes(table(tmp_path), data=data, out=tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "fixes.csv"]


@pytest.mark.parametrize("text", ["", "name,what\n", "\xff\xfe\x00", "path,suggestion,path\n"])
def test_a_table_of_another_kind_is_refused(data, tmp_path, text):
    (tmp_path / "fixes.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"fixes\.csv"):
        apply_fixes(tmp_path / "fixes.csv", data=data, out=tmp_path / "new")


def test_written_fixes_can_be_applied(data, tmp_path):
    findings = [
        Finding("duplicate", ("train/a/1.png", "train/a/2.png"), "twice", ("keep", "drop")),
        Finding.of("suspected_label", "val/a/4.png", "looks like b", "move val/b, or so"),
        Finding.of("bad_name", "a::b", "unusable", "keep"),
    ]
    write_fixes(tmp_path / "fixes.csv", findings)
    with (tmp_path / "fixes.csv").open(newline="") as lines:
        assert [tuple(row) for row in csv.reader(lines)] == [
            ("path", "finding", "suggestion"),
            ("train/a/1.png", "duplicate", "keep"),
            ("train/a/2.png", "duplicate", "drop"),
            ("val/a/4.png", "suspected_label", "move val/b, or so"),
        ]
    assert apply_fixes(tmp_path / "fixes.csv", data=data, out=tmp_path / "new")["moved"] == 1
    assert (tmp_path / "new/val/b, or so/4.png").exists()


@pytest.mark.parametrize(
    "text",
    [
        "path;finding;suggestion\ntrain/a/1.png;x;drop\n",
        "\ufeffpath, finding, suggestion\r\n\r\ntrain/a/1.png, x, drop\r\n",
        "path,finding,suggestion\ntrain\\a\\1.png,x,drop\n",
        '"path";"finding";"suggestion"\n"train/a/1.png";"x";"drop"\n',
    ],
    ids=["semicolons", "spaces and a byte order mark", "backslashes", "semicolons and quotes"],
)
def test_fixes_may_come_from_a_spreadsheet(data, tmp_path, text):
    (tmp_path / "fixes.csv").write_text(text)
    assert apply_fixes(tmp_path / "fixes.csv", data=data, out=tmp_path / "new")["dropped"] == 1
    assert "train/a/1.png" not in files(tmp_path / "new")


def test_fixes_without_rows_leave_everything_in_place(data, tmp_path):
    assert apply_fixes(table(tmp_path), data=data, out=tmp_path / "new")["dropped"] == 0
    assert files(tmp_path / "new").keys() == {*FILES}


@pytest.mark.parametrize(
    ("row", "message"),
    [("train/a/1.png,x", "row 1 .line 2.*'suggestion'"), ("train/a/1,5.png,x,drop", "row 1.*4 values.*quotes")],
)
def test_a_row_of_another_length_is_refused_with_its_number(data, tmp_path, row, message):
    (tmp_path / "fixes.csv").write_text(f"path,finding,suggestion\n{row}\n")
    with pytest.raises(InputError, match=rf"fixes\.csv, {message}"):
        apply_fixes(tmp_path / "fixes.csv", data=data, out=tmp_path / "new")
