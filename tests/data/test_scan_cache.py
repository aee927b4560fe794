"""The index of a folder: files that have not changed are not read again, changed ones are."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from headstart.config import DataConfig
from headstart.data import read_images
from headstart.data.eval_manifest import build_eval_manifest
from headstart.data.manifest import build_manifest
from headstart.data.samples import Manifest
from headstart.data.sources.folders import ClassFolders


@pytest.fixture
def settled(image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """15 images whose modification lies an hour back, and a cache folder of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = image_folder(train=3, val=2)
    for path in root.rglob("*.*"):
        age(path)
    return root


def age(path: Path) -> None:
    os.utime(path, (time.time() - 3600,) * 2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are read."""
    names: list[str] = []
    original = ClassFolders.read
    monkeypatch.setattr(ClassFolders, "read", lambda self, path: names.append(path) or original(self, path))
    return names


def scan(root: Path, **changes: object) -> Manifest:
    data = DataConfig(root=str(root), **changes)  # type: ignore[arg-type]
    return build_manifest(ClassFolders(str(root)), data, seed=0, num_threads=1)


def test_a_second_scan_reads_nothing_and_finds_the_same(settled: Path, read: list[str]) -> None:
    first = scan(settled)
    assert len(read) == 15
    read.clear()
    assert scan(settled) == first
    assert read == []


def test_what_was_added_or_changed_is_read_and_nothing_else(
    settled: Path, read: list[str], draw_image: Callable[..., Image.Image]
) -> None:
    before = scan(settled)
    read.clear()
    added, changed = settled / "train/red_checks/new.jpg", settled / "train/red_checks/red_checks_00.jpg"
    for number, path in enumerate((added, changed)):
        draw_image(0, 50 + number).save(path)
        age(path)
    after = scan(settled)
    assert sorted(read) == ["train/red_checks/new.jpg", "train/red_checks/red_checks_00.jpg"]
    assert len(set(after.samples.column("sha256")) - set(before.samples.column("sha256"))) == 2


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_is_read_again(
    settled: Path, read: list[str]
) -> None:
    path = settled / "train/red_checks/red_checks_00.jpg"
    content = path.read_bytes()
    scan(settled)
    other = path.with_name("other.jpg")
    other.write_bytes(content)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)  # another inode
    read.clear()
    scan(settled)
    assert read == ["train/red_checks/red_checks_00.jpg"]


def test_a_file_that_was_just_written_is_not_trusted(settled: Path, read: list[str]) -> None:
    (settled / "train/red_checks/red_checks_00.jpg").touch()
    scan(settled)
    read.clear()
    scan(settled)
    assert read == ["train/red_checks/red_checks_00.jpg"]


def test_an_unreadable_file_is_tried_again(settled: Path, read: list[str]) -> None:
    bad = settled / "train/red_checks/red_checks_00.jpg"
    bad.write_bytes(b"")
    age(bad)
    for _ in range(2):
        read.clear()
        assert [skipped.path for skipped in scan(settled, on_bad_file="skip").skipped] == [
            "train/red_checks/red_checks_00.jpg"
        ]
    assert read == ["train/red_checks/red_checks_00.jpg"]


def test_rescan_reads_everything(settled: Path, read: list[str]) -> None:
    scan(settled)
    read.clear()
    scan(settled, rescan=True)
    assert len(read) == 15


def test_an_evaluation_of_one_split_keeps_the_index_of_the_other(settled: Path, read: list[str]) -> None:
    def evaluate() -> None:
        source = ClassFolders(str(settled))
        classes = ("blue_waves", "green_stripes", "red_checks")
        build_eval_manifest(source, classes=classes, on_bad_file="refuse", trained_on=lambda sha256, path: False)

    scan(settled)
    changed = settled / "val/red_checks/red_checks_00.jpg"
    changed.write_bytes((settled / "val/red_checks/red_checks_01.png").read_bytes())
    age(changed)
    read.clear()
    evaluate()
    assert read == ["val/red_checks/red_checks_00.jpg"]
    read.clear()
    evaluate()
    scan(settled)
    assert read == []


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_index_is_made_anew(damage: str, settled: Path, read: list[str], tmp_path: Path) -> None:
    first = scan(settled)
    (index,) = (tmp_path / "cache/headstart/index").iterdir()
    content = bytearray(index.read_bytes())
    if damage == "flipped":
        content[60] ^= 1  # in the first page
    index.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    read.clear()
    assert scan(settled) == first
    assert len(read) == 15
    read.clear()
    assert scan(settled) == first
    assert read == []


def test_another_decoder_looks_at_everything(settled: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    scan(settled)
    read.clear()
    monkeypatch.setattr("headstart.data.scan_cache.DECODER", "another")
    scan(settled)
    assert len(read) == 15


def test_a_cache_that_cannot_be_written_costs_the_index_alone(
    settled: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(scan(settled).samples) == 15


def test_a_long_scan_reports_its_progress(
    settled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(read_images, "REPORT_S", 0.0)
    monkeypatch.setattr(read_images, "CHUNK", 6)
    caplog.set_level("INFO", logger="headstart")
    build_manifest(ClassFolders(str(settled)), DataConfig(root=str(settled)), seed=0, num_threads=1)
    assert [re.findall(r"(\d+) of 15", line) for line in caplog.messages] == [["6"], ["12"]]
