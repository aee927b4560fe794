"""The same images from class folders, a zip, a table, a saved dataset, tar and parquet shards: one manifest, one
training."""

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.layouts import CLASSES, WAYS, as_csv, as_tar_shards, as_zip, rows_of

from headstart.config import DataConfig
from headstart.data.eval_manifest import build_eval_manifest
from headstart.data.manifest import build_manifest
from headstart.data.samples import Manifest
from headstart.data.sources.open import open_source
from headstart.errors import InputError


def scan(root: Path | str, **changes: object) -> Manifest:
    data = DataConfig(root=str(root), **changes)  # type: ignore[arg-type]
    return build_manifest(open_source(data), data, seed=0, num_threads=2)


@pytest.mark.parametrize("way", WAYS)
def test_every_source_holds_the_same_images(way: Callable[[Path, Path], str], tiny_data: Path, tmp_path: Path) -> None:
    folder, other = scan(tiny_data), scan(way(tiny_data, tmp_path))
    assert other.classes == folder.classes == CLASSES
    assert other.sha256 == folder.sha256
    assert other.skipped == ()
    bytes_of = {sample.sha256: (tiny_data / sample.path).read_bytes() for sample in folder.samples}
    assert all(other.source.read(sample.path) == bytes_of[sample.sha256] for sample in other.samples)


@pytest.mark.parametrize("way", WAYS)
def test_every_source_can_be_evaluated(way: Callable[[Path, Path], str], tiny_data: Path, tmp_path: Path) -> None:
    source = open_source(DataConfig(root=way(tiny_data, tmp_path)), to_evaluate=True)
    found = build_eval_manifest(source, classes=CLASSES, on_bad_file="refuse", trained_on=lambda sha256, path: False)
    assert sorted(found.samples.column("sha256")) == sorted(scan(tiny_data).of("val").column("sha256"))


@pytest.mark.parametrize("way", WAYS)
def test_every_source_is_read_alike_in_forked_workers(
    way: Callable[[Path, Path], str], tiny_data: Path, tmp_path: Path
) -> None:
    manifest = scan(way(tiny_data, tmp_path))
    paths = manifest.samples.column("path")
    here = [manifest.source.read(path) for path in paths]  # what is open here must not be shared
    there = torch.utils.data.DataLoader(
        paths, batch_size=None, num_workers=2, collate_fn=manifest.source.read, multiprocessing_context="fork"
    )
    assert list(there) == here


def test_patients_stay_on_one_side_of_a_split(tiny_data: Path, tmp_path: Path) -> None:
    rows = [row | {"patient": str(number // 4)} for number, row in enumerate(rows_of(tiny_data))]
    pq.write_table(
        pa.Table.from_pylist([row | {"path": str(tiny_data / row["path"])} for row in rows]), tmp_path / "list.parquet"
    )
    found = scan(tmp_path / "list.parquet", group_column="patient", split="stratified", val_fraction=0.3)
    patient = {str(tiny_data / row["path"]): row["patient"] for row in rows}
    train, val = ({patient[path] for path in found.of(split).column("path")} for split in ("train", "val"))
    assert len(train) + len(val) == 13
    assert not train & val


def test_copies_never_straddle_a_split(image_folder: Callable[..., Path]) -> None:
    root = image_folder(train=6)
    for path in sorted((root / "red_checks").iterdir()):
        for copy in range(3):
            (path.parent / f"copy {copy} {path.name}").write_bytes(path.read_bytes())
    found = scan(root, val_fraction=0.4)
    assert not set(found.of("train").column("sha256")) & set(found.of("val").column("sha256"))


def test_train_and_val_can_be_joined_and_split_anew(tiny_data: Path) -> None:
    folder, anew = scan(tiny_data), scan(tiny_data, split="stratified", val_fraction=0.2)
    assert sorted(anew.samples.column("id")) == sorted(folder.samples.column("id"))
    assert len(anew.of("val")) == 10
    folds = [scan(tiny_data, split="stable", folds=3, fold=fold) for fold in range(3)]
    assert sorted(sha for fold in folds for sha in fold.of("val").column("sha256")) == sorted(
        folder.samples.column("sha256")
    )


# ------------------------------------------------------------------------------------------------- what is refused


def refusal(root: Path | str, **changes: object) -> str:
    with pytest.raises(InputError) as caught:
        scan(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_table_without_the_columns_lists_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("picture,kind\na.jpg,ant\n")
    message = refusal(tmp_path / "a.csv")
    assert "picture, kind" in message
    assert "--image_column" in message
    assert "--data.image_column" in message
    message = refusal(tmp_path / "a.csv", image_column="picture")
    assert "--data.label_column" in message
    message = refusal(tmp_path / "a.csv", image_column="picture", label_column="species")
    assert "label_column" in message
    assert "'species'" in message


def test_rows_that_cannot_be_used_are_listed(tiny_data: Path, tmp_path: Path) -> None:
    rows = rows_of(tiny_data)
    lines = [f"{row['path']},{row['label']},{row['split']}" for row in rows]
    lines[0] = f"{rows[0]['path']},,train"
    lines += [f",{CLASSES[0]},train", lines[5], "x.jpg,red_checks,test", "y.jpg,red_checks,test"]
    root = shutil.copytree(tiny_data, tmp_path / "images")
    (root / "a.csv").write_text("file,class,split\n" + "".join(f"{line}\n" for line in lines))
    found = scan(root / "a.csv")
    assert len(found.samples) == 50
    reasons = {s.path: s.reason for s in found.skipped}
    assert reasons.keys() == {rows[0]["path"], "row 52", rows[5]["path"]}
    assert re.search(r"class\b.*\b1$", reasons[rows[0]["path"]])
    assert "path" in reasons["row 52"]
    assert "53" in reasons[rows[5]["path"]]
    assert (found.has_test, found.num_test) == (True, 2)


def test_one_image_with_two_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,class\na.jpg,ant\na.jpg,bee\n")
    message = refusal(tmp_path / "a.csv")
    for fragment in ("a.csv", "a.jpg", "'ant'", "row 2", "'bee'"):
        assert fragment in message


def test_one_image_under_two_spellings_of_its_path_is_noticed(tmp_path: Path) -> None:
    lines = ["b/x.jpg,ant", "./b/x.jpg,bee", "b//x.jpg,ant", "./c.jpg,ant", "c.jpg,ant"]
    (tmp_path / "a.csv").write_text("file,class\n" + "".join(f"{line}\n" for line in lines))
    found = open_source(DataConfig(root=str(tmp_path / "a.csv"))).scan()
    assert [entry.path for entry in found.entries] == ["./c.jpg"]  # as the table has it
    assert [(one.path, one.reason.split()[-1]) for one in found.skipped] == [("b//x.jpg", "3"), ("c.jpg", "5")]
    (bad,) = found.bad
    assert bad.path == "b/x.jpg"
    assert "'ant' and in row 2 as 'bee'" in bad.reason


def test_a_listed_file_that_is_not_there_is_unreadable_by_name(tiny_data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_data, tmp_path / "images")
    name = as_csv(root, root)
    (root / "train/red_checks/red_checks_00.jpg").unlink()
    assert "train/red_checks/red_checks_00.jpg (No such file" in refusal(name)
    assert len(scan(name, on_bad_file="skip").samples) == 50


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("a.csv", b"", "no rows"),
        ("a.csv", b"file,class,split\na.jpg,ant,train\n", "--data.split stratified"),
        ("a.jsonl", b'{"file": "a.jpg"', "line 1"),
        ("a.jsonl", b"[1]\n", "JSON object"),
        ("a.jsonl", b'{"file": "a.jpg"}\na.jpg,ant\n', "one JSON object per line"),
        ("a.jsonl", '{"file": "a.jpg"}'.encode("utf-16-le"), "save it as UTF-8"),
        ("a.tar", b"no tar", "as tar"),
        ("a.tar.gz", b"", "compressed"),
        ("a.parquet", b"no parquet", "as parquet"),
        ("dataset_info.json/state.json", b"{}", "dataset"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, fragment: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    root = path.parent if path.name == "state.json" else path
    message = refusal(root)
    assert root.name in message
    assert fragment in message.replace(str(root), "")


def test_a_pattern_names_shards_and_a_missing_one_is_reported(tiny_data: Path, tmp_path: Path) -> None:
    out = as_tar_shards(tiny_data, tmp_path)
    assert scan(f"{out}/{{train-{{000..001}},val-000}}.tar").sha256 == scan(out).sha256
    assert scan(f"{out}/*.tar").sha256 == scan(out).sha256
    assert "train-002.tar" in refusal(f"{out}/{{train-{{000..002}},val-000}}.tar")


def test_a_damaged_member_of_a_zip_is_unreadable_by_name(tiny_data: Path, tmp_path: Path) -> None:
    name = as_zip(tiny_data, tmp_path)
    with zipfile.ZipFile(name) as archive:
        inside = archive.infolist()[7]
    content = bytearray(Path(name).read_bytes())
    content[inside.header_offset + 100] ^= 0xFF
    Path(name).write_bytes(content)
    assert f"{inside.filename} (" in refusal(name)


def test_shards_behind_a_url_are_read_in_place(tiny_data: Path, tmp_path: Path) -> None:
    import fsspec

    as_tar_shards(tiny_data, tmp_path)
    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    assert scan("memory://bucket/{train-{000..001},val-000}.tar").sha256 == scan(tiny_data).sha256
