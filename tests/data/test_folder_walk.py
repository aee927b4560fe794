"""One walk: the same folder gives the same images to training, prediction and the data check."""

import errno
import os
import tarfile
import threading
import tracemalloc
import zipfile
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
from headstart.data.sources.open import open_source
from headstart.data_doctor.check import check_files
from headstart.data_doctor.fixes import apply_fixes
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
    link_up = "a link to a folder that it lies in"
    assert left_out == {**dict.fromkeys(kinds, 4), link_up: 2}
    skipped = build_manifest(ClassFolders(str(odd_folder)), DataConfig(), seed=0).skipped
    assert Counter(entry.reason.split(" is ")[0] for entry in skipped) == left_out
    findings = Counter(finding.kind for finding in check_files(ClassFolders(str(odd_folder))).findings)
    assert findings["unsupported_type"] == 24
    assert findings["hidden"] == 6
    assert findings["unused_folder"] == 2


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


@pytest.mark.parametrize("name", ["set [1]", "a{b,c}", "q?", "star*", "[!x]", "*"])
def test_brackets_and_stars_in_names_are_letters_in_every_command(
    name: str, tmp_path: Path, draw_image: Callable[..., Image.Image]
) -> None:
    root = classes_of(tmp_path / name, draw_image, "a [1]", "b*")
    classes_of(tmp_path / "s" / "other", draw_image, "a1", "b")
    expected = [f"{label}/{k}.png" for label in ("a [1]", "b*") for k in range(3)]
    assert open_source(DataConfig(root=str(root))) == ClassFolders(str(root))
    trained, predicted, checked = found_by_all(root)
    assert trained == predicted == checked == expected
    for pattern in ("a [1]/0.png", "a [1]/*.png", "*/0.png", "**/*.png"):
        found = [os.path.relpath(image.path, root) for image in images([f"{root}/{pattern}"])]
        wanted = {"a [1]/0.png": expected[:1], "a [1]/*.png": expected[:3], "*/0.png": expected[::3]}
        assert found == wanted.get(pattern, expected)


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


def classes_of(root: Path, draw_image: Callable[..., Image.Image], *names: str) -> Path:
    """Three images in each of these folders."""
    for code, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(3):
            draw_image(code, k).save(root / name / f"{k}.png")
    return root


def failing(function: Callable[..., Any], name: str, code: int) -> Callable[..., Any]:
    """`function`, as a file system that is gone lets it fail for one file or folder."""

    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(path, str | os.PathLike) and os.fspath(path).endswith(name):
            raise OSError(code, os.strerror(code), str(path))
        return function(path, *arguments, **options)

    return call


GONE = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ELOOP, errno.ENAMETOOLONG]


@pytest.mark.parametrize("code", GONE, ids=[errno.errorcode[code] for code in GONE])
def test_a_folder_that_cannot_be_read_is_listed_by_every_command(
    code: int, tmp_path: Path, draw_image: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes_of(tmp_path / "data", draw_image, "a", "b", "locked")
    monkeypatch.setattr(os, "scandir", failing(os.scandir, "locked", code))
    with pytest.raises(InputError, match=rf"1 unreadable folder .*locked/ \({os.strerror(code)}\).*on_bad_file skip"):
        build_manifest(ClassFolders(str(root)), DataConfig(), seed=0)
    found = build_manifest(ClassFolders(str(root)), DataConfig(on_bad_file="skip"), seed=0)
    assert found.classes == ("a", "b")
    assert [(one.path, one.reason) for one in found.skipped] == [("locked/", os.strerror(code))]
    rows = [(os.path.basename(image.path), image.error) for image in images([str(root)])]
    assert rows[-1] == ("locked", os.strerror(code))
    assert len(rows) == 7
    findings = check_files(ClassFolders(str(root))).findings
    assert [(f.kind, f.paths) for f in findings if f.kind == "unreadable"] == [("unreadable", ("locked/",))]
    (tmp_path / "fixes.csv").write_text("path,finding,suggestion\n")
    with pytest.raises(InputError, match=f"locked: {os.strerror(code)}"):
        apply_fixes(tmp_path / "fixes.csv", data=root, out=tmp_path / "new")


@pytest.mark.parametrize("code", GONE, ids=[errno.errorcode[code] for code in GONE])
def test_a_file_that_cannot_be_read_is_listed(
    code: int, tmp_path: Path, draw_image: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes_of(tmp_path / "data", draw_image, "a", "b")
    monkeypatch.setattr(Path, "stat", failing(Path.stat, "a/0.png", code))
    found = build_manifest(ClassFolders(str(root)), DataConfig(on_bad_file="skip"), seed=0)
    assert [(one.path, one.reason) for one in found.skipped] == [("a/0.png", os.strerror(code))]


@pytest.mark.parametrize("code", GONE, ids=[errno.errorcode[code] for code in GONE])
def test_a_root_that_does_not_answer_is_one_sentence(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "stat", failing(os.stat, "share", code))
    with pytest.raises(InputError, match=rf"share: {os.strerror(code)}"):
        open_source(DataConfig(root=str(tmp_path / "share")))
    assert [image.error for image in images([str(tmp_path / "share")])] == [os.strerror(code)]


def test_a_root_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", failing(os.scandir, tmp_path.name, errno.EACCES))
    with pytest.raises(InputError, match="Permission denied"):
        list(walk(tmp_path))
    with pytest.raises(InputError, match="Permission denied"):
        ClassFolders(str(tmp_path)).check()


def test_links_of_folders_that_lead_nowhere_are_listed(tmp_path: Path, draw_image: Callable[..., Image.Image]) -> None:
    root = classes_of(tmp_path / "data", draw_image, "a", "b")
    (root / "gone").symlink_to(tmp_path / "unmounted")
    (root / "itself").symlink_to(root / "itself")
    (root / "up").symlink_to(root)
    (root / "notes.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match=r"2 unreadable folders.*gone/ \(a link to nothing\).*itself/"):
        build_manifest(ClassFolders(str(root)), DataConfig(), seed=0)
    found = build_manifest(ClassFolders(str(root)), DataConfig(on_bad_file="skip"), seed=0)
    assert found.classes == ("a", "b")
    assert {one.path for one in found.skipped} == {"gone/", "itself/", "up/"}


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_link_to_the_root_or_above_it_is_passed_over(
    target: str, tmp_path: Path, draw_image: Callable[..., Image.Image]
) -> None:
    """It would bring the images of other classes, and of other folders, into this one."""
    root = classes_of(tmp_path / "photos/data", draw_image, "a", "b")
    classes_of(tmp_path / "photos/other", draw_image, "c")
    (root / "a" / "up").symlink_to(target)
    found = build_manifest(ClassFolders(str(root)), DataConfig(), seed=0)
    assert found.classes == ("a", "b")
    assert [one.path for one in found.skipped] == ["a/up/"]


SYSTEM = ["lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000", "__MACOSX"]


@pytest.mark.parametrize("name", SYSTEM)
def test_system_folders_are_passed_over_in_every_source(
    name: str, tmp_path: Path, draw_image: Callable[..., Image.Image]
) -> None:
    root = classes_of(tmp_path / "data", draw_image, "a", "b", name, f"a/{name}/0.png")
    trained, predicted, checked = found_by_all(root)
    assert trained == predicted == checked == [f"{label}/{k}.png" for label in "ab" for k in range(3)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in root.glob("**/*.png"):
            archive.write(path, path.relative_to(root)) if path.is_file() else None
    zipped = build_manifest(open_source(DataConfig(root=str(tmp_path / "a.zip"))), DataConfig(), seed=0)
    assert sorted(zipped.samples.column("path")) == trained
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(root, "")
        for path in trained:
            (tmp_path / "a.cls").write_text(path[0])
            archive.add(tmp_path / "a.cls", path.replace(".png", ".cls"))
    shards = build_manifest(open_source(DataConfig(root=str(tmp_path / "a.tar"))), DataConfig(), seed=0)
    assert sorted(shards.samples.column("path")) == [f"a.tar/{path}" for path in trained]
    assert not shards.skipped


def test_an_unreadable_system_folder_is_no_obstacle(
    tmp_path: Path, draw_image: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes_of(tmp_path / "data", draw_image, "a", "b", "lost+found")
    monkeypatch.setattr(os, "scandir", failing(os.scandir, "lost+found", errno.EACCES))
    trained, predicted, checked = found_by_all(root)
    assert trained == predicted == checked
    assert len(trained) == 6


@pytest.mark.parametrize("place", ["runs/first", "first", "a/first"])
def test_the_folder_of_a_run_is_never_a_class(
    place: str, tmp_path: Path, draw_image: Callable[..., Image.Image]
) -> None:
    root = classes_of(tmp_path / "data", draw_image, "a", "b", place)
    (root / place / "config.yaml").write_text("seed: 0\n")
    (root / place / "metrics.jsonl").touch()
    trained, predicted, checked = found_by_all(root)
    assert trained == predicted == checked
    assert len(trained) == 6
    found = build_manifest(ClassFolders(str(root)), DataConfig(), seed=0)
    assert [(one.path, one.reason) for one in found.skipped] == [(f"{place}/", "the folder of a run")]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in root.glob("**/*.*"):
            archive.write(path, path.relative_to(root))
    zipped = build_manifest(open_source(DataConfig(root=str(tmp_path / "a.zip"))), DataConfig(), seed=0)
    assert zipped.classes == ("a", "b")
    assert [one.path for one in zipped.skipped] == [f"{place}/"]
