"""One walk: the same folder gives the same images to training, prediction and the data check."""

import os
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headstart.config import DataConfig
from headstart.data.decode import EXTENSIONS, decode
from headstart.data.folder_walk import READ_AHEAD, walk
from headstart.data.manifest import build_manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data_doctor.check import check_files
from headstart.errors import InputError
from headstart.predict.image_paths import images

FORMAT = {
    ".jpg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".tif": "TIFF",
    ".bmp": "BMP",
    ".png": "PNG",
    ".webp": "WEBP",
}


@pytest.fixture
def odd_folder(tmp_path: Path, draw_image: Callable[..., Image.Image]) -> Path:
    """Two classes with every image type, other types, hidden files and links."""
    root = tmp_path / "data"
    for code, name in enumerate(("a", "b")):
        folder = root / name / "deep"
        folder.mkdir(parents=True)
        for number, ending in enumerate(sorted(EXTENSIONS)):
            draw_image(code, number).save(folder.parent / f"{number}{ending.upper()}", FORMAT.get(ending, "PPM"))
        for number, ending in enumerate((".gif", ".ico", ".tga", ".jp2", ".txt", "")):
            (folder / f"other_{number}{ending}").write_bytes(b"x")
        draw_image(code, 50).save(folder / "a.b.jpg")
        draw_image(code, 51).save(folder / ".hidden.jpg")
        (root / name / ".git").mkdir()
        draw_image(code, 52).save(root / name / ".git" / "x.png")
        (root / name / "back").symlink_to(root)
        (root / name / "twice").symlink_to(folder)
    return root


def found_by_all(root: Path) -> tuple[list[str], list[str], list[str]]:
    trained = build_manifest(ClassFolders(str(root)), DataConfig(), seed=0).samples.column("path")
    predicted = [os.path.relpath(image.path, root) for image in images([str(root)])]
    checked = [image.file.path for image in check_files(ClassFolders(str(root))).good]
    return sorted(trained), predicted, checked


def test_train_predict_and_check_find_the_same_images(odd_folder: Path) -> None:
    trained, predicted, checked = found_by_all(odd_folder)
    assert trained == predicted == checked
    assert len(trained) == 2 * (len(EXTENSIONS) + 2)
    assert {os.path.splitext(path)[1].lower() for path in trained} == EXTENSIONS
    assert "a/twice/a.b.jpg" in trained
    for path in trained:
        assert decode((odd_folder / path).read_bytes()).mode == "RGB"


def test_each_reports_what_it_skips(odd_folder: Path) -> None:
    left_out: Counter[str] = Counter()
    list(images([str(odd_folder)], left_out=left_out))
    kinds = {".gif", ".ico", ".tga", ".jp2", ".txt", "no extension"}
    assert left_out == dict.fromkeys(kinds, 4)
    skipped = build_manifest(ClassFolders(str(odd_folder)), DataConfig(), seed=0).skipped
    assert Counter(entry.reason.split(" is ")[0] for entry in skipped) == left_out
    findings = Counter(finding.kind for finding in check_files(ClassFolders(str(odd_folder))).findings)
    assert findings["unsupported_type"] == 24
    assert findings["hidden"] == 6


def test_links_that_lead_nowhere_are_unreadable_images_for_all(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert [os.path.basename(image.path) for image in images([str(tmp_path)])] == ["gone.jpg", "loop.jpg"]
    with pytest.raises(InputError, match=r"2 unreadable files.*a/gone\.jpg.*a/loop\.jpg"):
        build_manifest(ClassFolders(str(tmp_path)), DataConfig(), seed=0)


def test_the_order_is_that_of_the_whole_paths(tmp_path: Path) -> None:
    for name in ("b/1.png", "b-a/1.png", "b/c/1.png", "b.png", "a.png", "z/1.png", "b/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [one.path for one in walk(tmp_path) if one.kind == "image"]
    assert found == sorted(found)
    assert len(found) == 7


def test_many_folders_are_not_in_memory_at_once(tmp_path: Path) -> None:
    per_folder, folders = 100, 6 * READ_AHEAD
    for number in range(folders):
        folder = tmp_path / f"{number:03d}"
        folder.mkdir()
        for k in range(per_folder):
            (folder / f"image_with_a_long_name_{k:06d}.jpg").touch()
    tracemalloc.start()
    assert sum(found.kind == "image" for found in walk(tmp_path)) == per_folder * folders
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tracemalloc.start()
    held = list(walk(tmp_path))
    all_of_them, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == (per_folder + 1) * folders
    assert peak < 0.5 * all_of_them


def test_a_walk_that_is_not_finished_leaves_no_thread(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").touch()
    before = threading.active_count()
    steps = walk(tmp_path)
    assert [next(steps).path for _ in range(2)] == ["0", "0/a.png"]
    steps.close()
    assert threading.active_count() == before


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match=r"locked.*Permission denied"):
        list(walk(tmp_path))
    monkeypatch.undo()
