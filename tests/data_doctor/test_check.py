"""The doctor finds every planted fault and nothing else; hostile bytes end as findings."""

import hashlib
import os
import re
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.layouts import WAYS
from support.planting import encoded, good_folder, hostile, huge_png, scene

from headstart.config import DataConfig, RunConfig
from headstart.data.manifest import build_manifest
from headstart.data.samples import Manifest, Sample, Samples
from headstart.data.sources.folders import ClassFolders
from headstart.data.sources.open import open_source
from headstart.data_doctor import command, examine, inspection
from headstart.data_doctor.balance import Named, copies, thin_classes
from headstart.data_doctor.check import Checked, check_files
from headstart.data_doctor.findings import KINDS, number_of
from headstart.data_doctor.quick_check import quick_check
from headstart.errors import InputError
from headstart.wording import listed, shown


def check_folder(root: Path, **settings: int) -> Checked:
    return check_files(ClassFolders(str(root)), **settings)


def folder(root: Path, files: dict[str, bytes]) -> Path:
    """With two sound images in each of two classes beside `files`."""
    for k in range(4):
        files = {f"{'ab'[k % 2]}/good_{k}.png": encoded(scene(k % 2, k), "PNG")} | files
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def kinds(root: Path) -> dict[str, str]:
    """Path -> kind of everything found but for the smallness of such folders."""
    thin = ("near_empty_class", "imbalance")
    return {f.paths[0]: f.kind for f in check_folder(root, num_threads=2).findings if f.kind not in thin}


def test_a_folder_without_faults_has_no_finding(tmp_path):
    good_folder(tmp_path / "data", train=10, val=10)
    checked = check_folder(tmp_path / "data")
    assert checked.findings == []
    assert (checked.num_files, len(checked.good)) == (60, 60)
    assert checked.census.formats == {"JPEG": 30, "PNG": 30}
    assert checked.census.largest == (160, 120)
    assert set(checked.counts.values()) == {10}


@pytest.mark.parametrize("way", WAYS)
def test_every_source_is_looked_at_with_the_same_findings(way, tiny_data, tmp_path):
    root = shutil.copytree(tiny_data, tmp_path / "data")
    image = (root / "train/red_checks/red_checks_00.jpg").read_bytes()
    faults = {
        "val/red_checks/leak.jpg": image,
        "train/blue_waves/other.jpg": image,
        "train/red_checks/cut.jpg": image[:900],
        "train/red_checks/none.jpg": b"",
        "val/red_checks/text.jpg": b"text",
        "val/blue_waves/small.png": encoded(scene(0, 1, (9, 9)), "PNG"),
    }
    for name, content in faults.items():
        (root / name).write_bytes(content)
    (tmp_path / "other").mkdir()

    def found(source):
        checked = check_files(source, num_threads=2)
        whole = checked.findings + copies((image.sha256, image.file) for image in checked.good)
        return Counter((f.kind, f.message) for f in whole), checked.counts, checked.census, checked.num_files

    folder = found(ClassFolders(str(root)))
    assert {"truncated", "empty_file", "other_kind", "tiny", "duplicate_across_splits"} <= {k for k, _ in folder[0]}
    assert found(open_source(DataConfig(root=way(root, tmp_path / "other")), to_evaluate=True)) == folder


def test_unusual_but_usable_images_are_counted_and_are_not_faults(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    image = scene(0, 50)
    files = {
        "a/turned.jpg": encoded(image, "JPEG", exif=turned),
        "a/phone.jpg": encoded(image, "MPO", save_all=True, append_images=[scene(0, 51)]),
        "a/gray.png": encoded(image.convert("L"), "PNG"),
        "a/palette.bmp": encoded(image.convert("P"), "BMP"),
        "a/deep.tif": encoded(Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)), "TIFF"),
        "a/map.pgm": encoded(image.convert("L"), "PPM"),
    }
    root = folder(tmp_path, files)
    assert kinds(root) == {}
    census = check_folder(root).census
    assert census.rotated == 1
    assert census.modes == {"RGB": 6, "L": 2, "P": 1, "I;16": 1}
    assert census.smallest == (80, 60)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("cut.webp", encoded(scene(0, 9), "WEBP")[:900], "truncated"),
        ("cut.bmp", encoded(scene(0, 9), "BMP")[:900], "truncated"),
        ("cut_in_the_header.jpg", encoded(scene(0, 9), "JPEG")[:120], "truncated"),
        ("cut_in_the_header.png", encoded(scene(0, 9), "PNG")[:20], "truncated"),
        ("text.png", b"Not Found\n", "other_kind"),
        ("zeros.jpg", bytes(5000), "other_kind"),
        ("cut.avif", encoded(scene(0, 9), "AVIF")[:900], "unreadable"),
        ("bomb.jpg", huge_png(), "too_large"),
        ("smaller_bomb.png", huge_png(15_000), "too_large"),
        ("flat.png", encoded(Image.new("RGB", (64, 64), "white"), "PNG"), "single_colour"),
        ("thin.png", encoded(scene(0, 9, (200, 8)), "PNG"), "tiny"),
        ("notes.txt", b"ants", "unsupported_type"),
        ("film.gif", encoded(scene(0, 9), "GIF"), "unsupported_type"),
        ("no_extension", encoded(scene(0, 9), "PNG"), "unsupported_type"),
        ("photo.tiff", encoded(scene(0, 9), "WEBP"), "wrong_extension"),
        ("pages.tif", encoded(scene(0, 9), "TIFF", save_all=True, append_images=[scene(0, 8)]), "animated"),
        (".hidden.jpg", encoded(scene(0, 9), "JPEG"), "hidden"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_faulty_file_has_one_finding_by_its_name(tmp_path, name, data, kind):
    assert kinds(folder(tmp_path, {f"a/{name}": data})) == {f"a/{name}": kind}


def test_a_pipe_is_reported_and_not_read(tmp_path):
    root = folder(tmp_path, {})
    os.mkfifo(root / "a/pipe.jpg")
    # ends a read of the pipe, so that this test fails and does not hang
    rescue = threading.Timer(60, lambda: os.close(os.open(root / "a/pipe.jpg", os.O_WRONLY | os.O_NONBLOCK)))
    rescue.start()
    (root / "a/gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "a/loop.jpg").symlink_to(root / "a/loop.jpg")
    (root / "a/again").symlink_to(root / "a")
    found = kinds(root)
    opened = rescue.is_alive()
    rescue.cancel()
    assert {path: kind for path, kind in found.items() if "again" not in path} == {
        "a/pipe.jpg": "unreadable",
        "a/gone.jpg": "unreadable",
        "a/loop.jpg": "unreadable",
    }
    assert found["a/again/"] == "unused_folder"
    assert len(found) == 4
    assert opened, "the pipe was read until the timer opened its other end"


def test_a_file_too_long_to_be_an_image_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(examine, "MAX_FILE_BYTES", 50_000)
    assert kinds(folder(tmp_path, {"a/long.png": bytes(60_000)})) == {"a/long.png": "too_large"}


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    files = {f"a/large_{k}.png": encoded(scene(0, k, (200, 150)), "PNG") for k in range(6)}
    root = folder(tmp_path, files)
    decoding, most = [], []

    def watched(data: bytes) -> Image.Image:
        image = decode(data)
        if image.width == 200:
            decoding.append(1)
            most.append(len(decoding))
            time.sleep(0.02)
            decoding.pop()
        return image

    decode = examine.decode
    monkeypatch.setattr(examine, "decode", watched)
    monkeypatch.setattr(examine, "_LARGE_PIXELS", 200 * 150 - 1)
    assert len(check_folder(root, num_threads=4).good) == 10
    assert most == [1] * 6


def test_an_image_that_does_not_fit_in_memory_is_a_finding(tmp_path, monkeypatch):
    def no_room(data: bytes) -> Image.Image:
        raise MemoryError

    root = folder(tmp_path, {})
    monkeypatch.setattr(examine, "decode", no_room)
    assert {f.kind for f in check_folder(root).findings} == {"too_large", "empty_class"}


def test_file_names_that_are_not_unicode_are_reported(tmp_path):
    root = folder(tmp_path, {})
    (Path(os.fsdecode(os.fsencode(root / "a") + b"/\xff.png"))).write_bytes(encoded(scene(0, 8), "PNG"))
    found = kinds(root)
    assert found.pop("a", "empty_class") == "empty_class"
    assert set(found.values()) == {"bad_name"}
    assert {shown(path) for path in found} == {r"a/\udcff.png"}


def test_names_of_classes_that_look_alike_are_reported(tmp_path):
    names = ("Ants", "ants", "Ants ", "bees")
    root = folder(
        tmp_path, {f"{name}/{k}.png": encoded(scene(k, j), "PNG") for j, name in enumerate(names) for k in (0, 1)}
    )
    (one,) = (finding for finding in check_folder(root).findings if finding.kind == "alike_names")
    assert one.paths == ("Ants", "Ants ", "ants")
    data = DataConfig(root=str(root), on_bad_file="skip", val_fraction=0.4)
    lines = quick_check(build_manifest(open_source(data), data, seed=0))
    assert any("'Ants'" in line and "'ants'" in line for line in lines)
    (root / "ants").rename(root / "wasps")
    (one,) = (finding for finding in check_folder(root).findings if finding.kind == "alike_names")
    assert "one class" in one.message


def test_half_a_split_and_classes_on_one_side_are_named(tmp_path):
    only_train = folder(tmp_path / "one" / "train", {}).parent
    assert kinds(only_train) == {"train": "missing_split"}
    both = folder(tmp_path / "two" / "train", {"c/x.png": encoded(scene(2, 1), "PNG")}).parent
    folder(both / "val", {"d/empty.png": b""})
    assert kinds(both) == {
        "train/c": "class_in_one_split",
        "val/d/empty.png": "empty_file",
        "val/d": "class_in_one_split",
    }
    assert ("empty_class", ("val/d",)) in {(f.kind, f.paths) for f in check_folder(both).findings}


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: None])
def test_a_path_that_is_not_a_folder_of_class_folders_is_refused(tmp_path, make):
    make(tmp_path / "it")
    with pytest.raises(InputError, match="it"):
        check_folder(tmp_path / "it")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it forgives
@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.extended)])
def test_hostile_bytes_end_as_findings(count, tmp_path):
    root = folder(tmp_path, {f"a/{name}": data for name, data in map(hostile, range(count))})
    checked = check_folder(root, num_threads=2)
    assert checked.num_files == count + 4
    paths = {image.file.path for image in checked.good} | {path for f in checked.findings for path in f.paths}
    assert len([path for path in paths if "noise" in path or "changed" in path]) == count
    assert {f.kind for f in checked.findings} <= KINDS.keys()


def named(*rows: tuple[str, str, str]) -> list[tuple[str, Named]]:
    return [(content, Named(path, path.split("/")[0], label)) for content, path, label in rows]


def test_the_kind_of_a_copy_depends_on_its_split_and_class():
    found = copies(
        named(
            ("1", "train/a/1", "a"),
            ("1", "train/a/2", "a"),
            ("2", "train/a/3", "a"),
            ("2", "val/a/4", "a"),
            ("3", "train/a/5", "a"),
            ("3", "train/b/6", "b"),
            ("4", "train/a/7", "a"),
            ("4", "val/b/8", "b"),
            ("5", "train/a/9", "a"),
        )
    )
    assert [(f.kind, f.paths, f.suggestions) for f in found] == [
        ("duplicate", ("train/a/1", "train/a/2"), ("keep", "drop")),
        ("duplicate_across_splits", ("train/a/3", "val/a/4"), ("drop", "keep")),
        ("duplicate_across_classes", ("train/a/5", "train/b/6"), ("drop", "drop")),
        ("duplicate_across_splits", ("train/a/7", "val/b/8"), ("drop", "keep")),
        ("duplicate_across_classes", ("train/a/7", "val/b/8"), ("drop", "drop")),
    ]
    (many,) = copies(named(*[("9", f"train/a/{k}", "a") for k in range(6)]))
    assert many.kind == "placeholder"


def test_thin_classes_and_imbalance_count_what_can_be_used():
    found = thin_classes(Counter({("", "a"): 60, ("", "b"): 11, ("", "c"): 9, ("", "d"): 0}))
    assert [(f.kind, f.paths) for f in found] == [("near_empty_class", ("c",)), ("imbalance", ("a", "c"))]
    assert thin_classes(Counter({("train", "a"): 49, ("train", "b"): 10, ("val", "a"): 10, ("val", "b"): 10})) == []


def manifest(*rows: tuple[str, str, str]) -> Manifest:
    samples = [
        Sample(id=str(k), path=f"{split}/{label}/{k}.png", sha256=content, split=split, label=label)
        for k, (content, split, label) in enumerate(rows)
    ]
    source = ClassFolders("photos")
    return Manifest(source, ("a", "b"), Samples.of(samples, [], source), ())


def test_the_quick_check_of_a_manifest_without_faults_is_empty():
    rows = [(f"{split}{label}{k}", split, label) for split in ("train", "val") for label in "ab" for k in range(10)]
    assert quick_check(manifest(*rows)) == []


def test_the_quick_check_has_a_line_with_an_example_per_fault():
    rows = [(f"{k}", "train", "a") for k in range(60)] + [(f"b{k}", "train", "b") for k in range(5)]
    lines = quick_check(manifest(*rows, ("3", "val", "a"), ("4", "val", "a"), ("b1", "val", "a")))
    expected = [
        ("train/a/3.png, val/a/65.png", "2 more"),
        ("a, b", "train/b/61.png, val/a/67.png"),
        ("train/b", "5 images"),
        ("a has 12.0", "60 and 5"),
        ("headstart data check photos",),
    ]
    for line, fragments in zip(lines, expected, strict=True):
        for fragment in fragments:
            assert fragment in line


def test_every_kind_of_finding_is_documented():
    for kind, about in KINDS.items():
        assert about.title[0].isupper()
        assert about.what_to_do.endswith(".")
        assert number_of(kind, 1) != number_of(kind, 2)
    assert listed(["a", "b", "c"], limit=2) == "a, b and 1 more"


def test_an_image_is_identified_by_the_sha256_of_its_file(tmp_path):
    root = folder(tmp_path, {})
    image = check_folder(root).good[0]
    assert image.sha256 == hashlib.sha256((root / image.file.path).read_bytes()).hexdigest()


def listed_images(root: Path, rows: list[str]) -> Path:
    """A table of five images of a and five of b; rows: of further images that exist already."""
    images = {f"{'ab'[number % 2]}/{number}.png": encoded(scene(number % 2, number), "PNG") for number in range(10)}
    for name, data in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    lines = rows if rows[0].startswith("path") else ["path,label", *(f"{name},{name[0]}" for name in images), *rows]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


def folders(root: Path, counts: dict[str, int]) -> Path:
    """Class folders with so many images."""
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(encoded(scene(place, number), "PNG"))
    return root


REFUSED = {
    "single_class": lambda root: folders(root, {"a": 12}),
    "single_class with train and val": lambda root: folders(root, {"train/a": 6, "val/a": 3}),
    "refused: a class of one image": lambda root: folders(root, {"a": 6, "b": 6, "c": 1}),
    "empty_class": lambda root: folders(root, {"a": 6, "b": 6, "c": 0}),
    "class_in_one_split": lambda root: folders(root, {"train/a": 6, "train/b": 6, "val/a": 3}),
    "missing_split": lambda root: folders(root, {"train/a": 6, "train/b": 6}),
    "conflicting_labels": lambda root: listed_images(root, ["a/0.png,b", "b/1.png,a"]),
    "refused: unknown splits": lambda root: listed_images(
        root, ["path,label,split", *(f"{'ab'[k % 2]}/{k}.png,{'ab'[k % 2]},part_{k % 3}" for k in range(10))]
    ),
    "refused: copies stay together": lambda root: copied(folders(root, {"a": 6, "b": 1})),
}


def copied(root: Path) -> Path:
    shutil.copy(root / "b/0.png", root / "b/1.png")
    return root


@pytest.mark.parametrize("what", REFUSED)
def test_what_training_refuses_is_a_finding(what, tmp_path, monkeypatch):
    root = REFUSED[what](tmp_path / "data")
    data = DataConfig(root=str(root))
    with pytest.raises(InputError):
        build_manifest(open_source(data), data, seed=0)
    monkeypatch.setattr(inspection, "features_of_images", lambda config, source, images: np.ones((len(images), 4)))
    report = inspection.inspect(RunConfig(data=replace(data, on_bad_file="skip")), labels=False)
    found = [finding for finding in report.result.findings if finding.kind == re.split("[: ]", what)[0]]
    assert found
    assert all(finding.message for finding in found)


def test_two_classes_of_which_one_has_no_usable_image_are_not_a_single_class(tmp_path):
    root = folders(tmp_path / "data", {"a": 6, "b": 2})
    for path in (root / "b").iterdir():
        path.write_bytes(b"")
    found = {
        f.kind for f in inspection.inspect(RunConfig(data=DataConfig(root=str(root))), labels=False).result.findings
    }
    assert "empty_class" in found
    assert found & {"single_class", "refused"} == set()


def test_a_test_set_may_be_small_and_lack_classes(tmp_path):
    root = folders(tmp_path / "data", {"train/a": 12, "train/b": 12, "val/a": 10, "val/b": 10, "test/a": 1})
    assert {f.kind for f in check_files(ClassFolders(str(root))).findings} == set()


def test_all_images_with_two_classes_are_findings_and_can_be_left_out(tmp_path):
    table = listed_images(tmp_path / "data", ["a/0.png,b", "b/1.png,a", "a/2.png,b", "a/2.png,c"])
    data = DataConfig(root=str(table))
    checked = check_files(open_source(data))
    found = {f.paths[0]: f.message for f in checked.findings if f.kind == "conflicting_labels"}
    assert list(found) == ["a/0.png", "b/1.png", "a/2.png"]
    for fragment in ("'a'", "row 11", "'b'"):
        assert fragment in found["a/0.png"]
    assert "row 14 as 'c'" in found["a/2.png"]
    with pytest.raises(InputError, match=r"3 images with two classes.*b/1.png.*on_bad_file skip"):
        build_manifest(open_source(data), data, seed=0)
    data = replace(data, on_bad_file="skip")
    manifest = build_manifest(open_source(data), data, seed=0)
    assert len(manifest.samples) == 7
    assert [skipped.path for skipped in manifest.skipped] == list(found)


def test_a_part_of_the_check_that_fails_is_a_note(tmp_path, monkeypatch):
    def fail(*_: object) -> np.ndarray:
        raise RuntimeError("no memory on the device")

    monkeypatch.setattr(inspection, "features_of_images", fail)
    folders(tmp_path / "data", {"a": 3, "b": 3})
    result = inspection.inspect(RunConfig(data=DataConfig(root=str(tmp_path / "data"))), labels=True).result
    assert "no memory on the device" in result.notes[0]
    assert any("labels were not studied" in note for note in result.notes)
    assert {finding.kind for finding in result.findings} == {"near_empty_class"}


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folders(tmp_path / "data", {"a": 3, "b": 3})
    monkeypatch.setattr(command, "write_csv", fail)  # the last file
    config = RunConfig(data=DataConfig(root=str(tmp_path / "data")))
    with pytest.raises(OSError, match="No space"):
        command.check_data(config, labels=False, out=str(tmp_path / "report"))
    assert not (tmp_path / "report").exists() or not list((tmp_path / "report").iterdir())
