"""headstart data check and headstart data apply as a user runs them."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from support.planting import CLASSES, altered, encoded, good_folder, plant, scene
from support.runs import small

from headstart.cli.main import main
from headstart.config import DataConfig
from headstart.data.manifest import build_manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data_doctor.findings import KINDS
from headstart.errors import InputError
from headstart.training.run import run

NOT_PLANTED = {"imbalance", "missing_split", "suspected_label", "left_out"} | {
    "conflicting_labels",
    "lacks_extra",
    "mirrored_classes",
    "refused",
    "single_class",
}


def exit_code(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return int(end.value.code or 0)


class Page(HTMLParser):
    """The tags in order; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A folder with two faults of every kind among good images, what was planted, and the report's folder."""
    place = tmp_path_factory.mktemp("check")
    good_folder(place / "data", train=14, val=10)
    planted = plant(place / "data", each=2)
    code = exit_code("data", "check", place / "data", "--out", place / "report", "--bank", place / "bank")
    return place / "data", planted, place / "report", code


@pytest.mark.slow
def test_every_planted_fault_is_named_and_no_good_image(checked):
    data, planted, report, code = checked
    assert code == 0
    values = json.loads((report / "doctor.json").read_text())
    found = {(finding["kind"], tuple(finding["paths"])) for finding in values["findings"]}
    assert planted - found == set()
    assert {kind for kind, _ in found - planted} == {"imbalance"}  # of the thin classes
    assert {kind for kind, _ in planted} | NOT_PLANTED == set(KINDS)
    in_classes = [path for path in data.glob("*/*/*") if path.is_file() and not path.name.startswith("bad_name")]
    assert values["files"] == len(in_classes)
    assert values["counts"]["truncated"] == 5


@pytest.mark.slow
def test_training_on_all_these_faults_succeeds_and_lists_them(checked, tmp_path, caplog):
    caplog.set_level("INFO", "headstart")
    data, planted, _, _ = checked
    config = small(data, tmp_path / "run", strategy="frozen_head", train={"epochs": 1}, data={"on_bad_file": "skip"})
    with pytest.raises(InputError, match="hollow_0"):
        run(small(data, tmp_path / "not"))
    summary = json.loads((run(config) / "summary.json").read_text())
    left_out = {entry["path"] for entry in summary["skipped"]}
    unusable = (
        "empty_file",
        "unreadable",
        "truncated",
        "unsupported_type",
        "too_large",
        "excessive",
        "unsupported_pixels",
        "empty_class",
        "outside_class",
        "unused_folder",
    )
    assert {path for kind, paths in planted if kind in unusable for path in paths} <= left_out
    assert {f"train/{name}/bad_name_{k}\\udcff.jpg" for k, name in enumerate(CLASSES[:2])} <= left_out
    assert {"lonely_0", "lonely_1"} <= left_out
    assert summary["classes"] == sorted([*CLASSES, "thin_0", "thin_1"])
    assert re.search(r"leak.*train/\w+/duplicate\w*across_splits", caplog.text, re.IGNORECASE)
    assert re.search(r"train/\w+/missing_", caplog.text)


@pytest.mark.slow
def test_groups_of_copies_keep_a_leak_out_of_a_split(tmp_path):
    data = tmp_path / "data"
    good_folder(data, train=14, val=10)
    for number in range(8):
        path = data / f"train/{CLASSES[number % 3]}" / ("00000.jpg", "00001.png", "00002.jpg")[number // 3]
        image = ImageOps.mirror(Image.open(path).convert("RGB")) if number % 2 else Image.open(path).convert("RGB")
        image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(
            data / f"val/{CLASSES[number % 3]}/copy_{number}.jpg", quality=85
        )
    assert exit_code("data", "check", data, "--out", tmp_path / "report", "--bank", tmp_path / "bank") == 0
    counts = json.loads((tmp_path / "report/doctor.json").read_text())["counts"]
    assert counts["near_duplicate_across_splits"] == 8
    groups = list(csv.DictReader((tmp_path / "report/groups.csv").read_text().splitlines()))
    assert len(groups) == 16
    config = DataConfig(root=str(data), split="stratified", groups=str(tmp_path / "report/groups.csv"))
    manifest = build_manifest(ClassFolders(str(data)), config, seed=0)
    side = {sample.path: sample.split for sample in manifest.samples}
    of_group: dict[str, set[str]] = {}
    for row in groups:
        of_group.setdefault(row["group"], set()).add(side[row["path"]])
    assert all(len(sides) == 1 for sides in of_group.values())
    assert {frozenset(sides) for sides in of_group.values()} == {frozenset({"train"}), frozenset({"val"})}


@pytest.mark.slow
def test_the_page_is_self_contained_and_accessible(checked):
    _, planted, report, _ = checked
    text = (report / "doctor.html").read_text()
    page = Page(text)
    assert page.open == []
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert links
    assert all(link.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,", "#")) for link in links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) >= 30
    assert all(attrs["alt"] for attrs in images)
    headings = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert {kind for kind, _ in planted} <= set(ids)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


@pytest.mark.slow
def test_applied_fixes_leave_no_fault_that_can_be_dropped(checked, tmp_path, capsys):
    data, _, report, _ = checked
    for path in data.rglob("*\udcff*"):  # as the report says: by hand
        path.rename(path.with_name(path.name.replace("\udcff", "")))
    before = sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*"))
    assert exit_code("data", "apply", report / "fixes.csv", "--data", data, "--out", tmp_path / "new") == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*")) == before
    capsys.readouterr()
    assert exit_code("data", "check", tmp_path / "new", "--out", tmp_path / "again", "--bank", tmp_path / "bank") == 0
    kinds = json.loads((tmp_path / "again/doctor.json").read_text())["counts"].keys()
    assert kinds <= {
        "alike_names",
        "dim",
        "near_duplicate",
        "near_duplicate_across_classes",
        "wrong_extension",
        "animated",
        "outside_class",
        "class_in_one_split",
        "near_empty_class",
        "imbalance",
        "unused_folder",
    }


@pytest.mark.slow
def test_training_images_copied_into_val_are_all_named(tmp_path, capsys):
    data = tmp_path / "data"
    good_folder(data, train=10, val=10)
    leaks = set()
    for k in range(10):
        code = k % 3
        source = data / "train" / CLASSES[code] / f"{k:05d}{('.jpg', '.png')[k % 2]}"
        copy = data / "val" / CLASSES[code] / f"holiday_{k}{('.jpg', '.png')[k % 4 in (1, 2)]}"
        copy.write_bytes(altered(scene(code, k), k))
        leaks.add(tuple(sorted(path.relative_to(data).as_posix() for path in (source, copy))))
    assert exit_code("data", "check", data, "--out", tmp_path / "report", "--bank", tmp_path / "bank") == 0
    assert re.search(r"leak.*10 groups", capsys.readouterr().out, re.IGNORECASE)
    with (tmp_path / "report/fixes.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["finding"] == "near_duplicate_across_splits"]
    assert {row["path"] for row in rows} == {path for pair in leaks for path in pair}
    assert {(row["path"].split("/")[0], row["suggestion"]) for row in rows} == {("train", "drop"), ("val", "keep")}


@pytest.mark.slow
def test_wrong_labels_are_listed_with_the_class_to_move_to(tmp_path, capsys):
    good_folder(tmp_path / "data", train=24, val=6)
    for number in (2, 4):  # spiders among the moths, called so in a folder without splits
        shutil.move(tmp_path / f"data/train/spiders/{number:05d}.jpg", tmp_path / f"data/train/moths/odd_{number}.jpg")
    options = ["--labels", "--image_size", 96, "--bank", tmp_path / "bank", "--out", tmp_path / "report"]
    assert exit_code("data", "check", tmp_path / "data/train", *options) == 0
    assert "cross-validated" in capsys.readouterr().out
    values = json.loads((tmp_path / "report/doctor.json").read_text())
    found = [finding for finding in values["findings"] if finding["kind"] == "suspected_label"]
    assert {"moths/odd_2.jpg", "moths/odd_4.jpg"} <= {finding["paths"][0] for finding in found}
    assert {f["suggestions"][0] for f in found if "odd" in f["paths"][0]} == {"move? spiders"}
    assert len(found) <= 6
    assert "suspected_label" in (tmp_path / "report/doctor.html").read_text()


def test_labels_of_a_class_too_small_to_hold_out_are_left_out_by_name(tmp_path, capsys):
    for name, count in (("a", 4), ("b", 4), ("c", 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "data" / name / f"{number}.png").write_bytes(encoded(scene(ord(name), number), "PNG"))
    options = ["--labels", "--image_size", 32, "--bank", tmp_path / "bank"]
    assert exit_code("data", "check", tmp_path / "data", *options) == 0
    assert re.search(r"labels of c\b", capsys.readouterr().out)


def test_a_folder_without_near_copies_is_checked_without_weights(tmp_path, capsys):
    good_folder(tmp_path / "data", train=10, val=10)
    assert exit_code("data", "check", tmp_path / "data", "--weights", tmp_path / "nowhere.pth") == 0
    printed = capsys.readouterr().out
    for fragment in ("60 files", "60 usable images", "3 classes", "JPEG 30, PNG 30", "RGB 60"):
        assert fragment in printed
    assert not any(about.title in printed for about in KINDS.values())


def test_names_are_shown_as_text_and_never_as_markup(tmp_path, capsys):
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()
    (folder / "<script>alert(1)<!-- [red].png").write_bytes(b"")
    (folder / "\x1b[31mred.png").write_bytes(b"")
    assert exit_code("data", "check", tmp_path / "data", "--out", tmp_path / "report") == 0
    said = capsys.readouterr().out
    assert "\x1b[31m" not in said
    text = (tmp_path / "report/doctor.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    lines = re.search(r'<script type="application/json" id="lines">(.*?)</script>', text)[1]
    assert "<" not in lines
    assert "a/<script>alert(1)<!-- [red].png" in {path for path, *_ in json.loads(lines)["lines"]}
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (["data", "check", "nowhere"], "nowhere"),
        (["data", "check", "data/a/1.png"], "data/a/1.png"),
        (["data", "check", "data/a"], "data/a"),
        (["data", "check", "data", "--out", "data/report"], "--out data/report"),
        (["data", "check", "data", "--out", "old"], "--out old"),
        (["data", "check", "data", "--out", "data/a/1.png"], "--out data/a/1.png"),
        (["data", "check", "data", "--image_size", "7"], "image_size"),
        (["data", "check", "data", "--folds", "1"], "folds"),
        (["data", "apply", "none.csv", "--data", "data", "--out", "new"], "none.csv"),
    ],
)
def test_wrong_input_is_refused_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, argv, fragment):
    monkeypatch.chdir(tmp_path)
    Path("data/a").mkdir(parents=True)
    Path("data/b").mkdir()
    Path("data/a/1.png").write_bytes(encoded(scene(0, 1), "PNG"))
    Path("old").mkdir()
    Path("old/fixes.csv").write_text("edited")
    before = sorted(Path().rglob("*"))
    assert exit_code(*argv) == 2
    message = capsys.readouterr().err
    assert fragment in message
    assert message.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_every_run_reports_the_leaks_in_its_manifest(tmp_path):
    from headstart.data_doctor.quick_check import describe_data

    data = tmp_path / "data"
    good_folder(data, train=10, val=4)

    def lines() -> list[str]:
        return describe_data(build_manifest(ClassFolders(str(data)), DataConfig(), seed=0)).splitlines()

    (line,) = lines()
    for fragment in (str(data), "30 training", "12 validation", "3 classes"):
        assert fragment in line
    shutil.copy(data / "train/moths/00000.jpg", data / "val/moths/again.jpg")
    _, leak, more = lines()
    assert "leak" in leak.lower()
    assert "train/moths/00000.jpg, val/moths/again.jpg" in leak
    assert f"headstart data check {data}" in more


@pytest.mark.slow
def test_a_table_is_checked_with_its_columns_and_applied_by_hand(tmp_path, capsys):
    good_folder(tmp_path / "data", train=10, val=10)
    (tmp_path / "data/val/moths/copy.png").write_bytes(encoded(ImageOps.mirror(scene(1, 0)), "PNG"))
    rows = [path.relative_to(tmp_path) for path in sorted((tmp_path / "data").glob("*/*/*"))]
    lines = [f"{row.as_posix()},{row.parts[2]},{row.parts[1]}\n" for row in rows]
    (tmp_path / "list.csv").write_text(
        "picture,animal,part\n" + "".join(lines) + "data/gone.png,moths,train\n,moths,train\n"
    )
    columns = ("--image_column", "picture", "--label_column", "animal", "--split_column", "part")
    where = ("--out", tmp_path / "report", "--bank", tmp_path / "bank")
    assert exit_code("data", "check", tmp_path / "list.csv", *columns, *where) == 0
    assert "data apply" not in capsys.readouterr().out
    values = json.loads((tmp_path / "report/doctor.json").read_text())
    found = {(f["kind"], tuple(f["paths"])) for f in values["findings"]}
    assert found == {
        ("near_duplicate_across_splits", ("data/train/moths/00000.jpg", "data/val/moths/copy.png")),
        ("unreadable", ("data/gone.png",)),
        ("left_out", ("row 63",)),
    }
    pictures = [attrs for tag, attrs in Page((tmp_path / "report/doctor.html").read_text()).tags if tag == "img"]
    assert len(pictures) == 2
    applied = (
        "data",
        "apply",
        tmp_path / "report/fixes.csv",
        "--data",
        tmp_path / "list.csv",
        "--out",
        tmp_path / "new",
    )
    assert exit_code(*applied) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "list.csv") in message
    assert "folder" in message
