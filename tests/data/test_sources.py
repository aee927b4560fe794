"""The same images from class folders, a zip, a table, a saved dataset, tar and parquet shards: one manifest, one training."""

import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import small, stopped_at

from headstart.config import DataConfig
from headstart.data.manifest import build_eval_manifest, build_manifest
from headstart.data.samples import Manifest
from headstart.data.source import open_source
from headstart.errors import InputError
from headstart.parsing import to_yaml
from headstart.start import run

CLASSES = ("blue_waves", "green_stripes", "red_checks")


def rows_of(root: Path) -> list[dict[str, str]]:
    """What lies in train/ and val/ of class folders: path, label, split."""
    paths = sorted(path.relative_to(root) for path in root.glob("*/*/*"))
    return [{"path": path.as_posix(), "label": path.parts[1], "split": path.parts[0]} for path in paths]


def as_zip(root: Path, out: Path, prefix: str = "") -> str:
    with zipfile.ZipFile(out / "images.zip", "w") as archive:
        for row in rows_of(root):
            archive.write(root / row["path"], prefix + row["path"])
    return str(out / "images.zip")


def as_zip_of_the_folder(root: Path, out: Path) -> str:
    return as_zip(root, out, prefix="photos/")


def as_csv(root: Path, out: Path) -> str:
    """Paths relative to the table."""
    with (out / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(row | {"path": os.path.relpath(root / row["path"], out)} for row in rows_of(root))
    return str(out / "images.csv")


def as_jsonl(root: Path, out: Path) -> str:
    lines = [
        {"image": str(root / row["path"]), "species": row["label"], "subset": row["split"]} for row in rows_of(root)
    ]
    (out / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(out / "images.jsonl")


def as_listing_parquet(root: Path, out: Path) -> str:
    pq.write_table(
        pa.Table.from_pylist([row | {"path": str(root / row["path"])} for row in rows_of(root)]), out / "list.parquet"
    )
    return str(out / "list.parquet")


def as_tar_shards(root: Path, out: Path) -> str:
    """Two shards for train, one for val, in an order of their own."""
    rows = rows_of(root)
    random.Random(0).shuffle(rows)
    for split, shards in (("train", 2), ("val", 1)):
        part = [row for row in rows if row["split"] == split]
        for number in range(shards):
            with tarfile.open(out / f"{split}-{number:03d}.tar", "w") as archive:
                for place, row in enumerate(part[number::shards]):
                    for suffix, content in (
                        (".jpg", (root / row["path"]).read_bytes()),
                        (".cls", row["label"].encode()),
                    ):
                        info = tarfile.TarInfo(f"{number:02d}{place:05d}{suffix}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
    return str(out)


def as_parquet_shards(root: Path, out: Path) -> str:
    """As datasets writes them, five images a row group, classes as numbers."""
    for split in ("train", "val"):
        part = [row for row in rows_of(root) if row["split"] == split]
        images = [{"bytes": (root / row["path"]).read_bytes(), "path": row["path"]} for row in part]
        labels = [CLASSES.index(row["label"]) for row in part]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
        table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(table, out / f"{split}-00000-of-00001.parquet", row_group_size=5)
    return str(out)


def as_saved_dataset(root: Path, out: Path) -> str:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    parts = {}
    for split, name in (("train", "train"), ("val", "validation")):
        rows = [row for row in rows_of(root) if row["split"] == split]
        columns = {"image": [str(root / row["path"]) for row in rows], "label": [row["label"] for row in rows]}
        parts[name] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(out / "saved")
    return str(out / "saved")


WAYS = [
    as_zip,
    as_zip_of_the_folder,
    as_csv,
    as_jsonl,
    as_listing_parquet,
    as_tar_shards,
    as_parquet_shards,
    as_saved_dataset,
]


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
def test_every_source_can_be_measured_on(way: Callable[[Path, Path], str], tiny_data: Path, tmp_path: Path) -> None:
    source = open_source(DataConfig(root=way(tiny_data, tmp_path)), to_measure=True)
    found = build_eval_manifest(source, classes=CLASSES, on_bad_file="refuse", trained_on=lambda sha256, path: True)
    assert sorted(found.samples.column("sha256")) == sorted(scan(tiny_data).of("val").column("sha256"))


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("way", [as_zip, as_csv, as_tar_shards, as_parquet_shards, as_saved_dataset])
def test_every_source_trains_the_same_model(way: Callable[[Path, Path], str], tiny_data: Path, tmp_path: Path) -> None:
    first = run(small(tiny_data, tmp_path / "folder", train={"epochs": 1}))
    (tmp_path / "data").mkdir()
    config = small(
        Path(way(tiny_data, tmp_path / "data")), tmp_path / "other", train={"epochs": 1}, data={"num_workers": 2}
    )
    assert losses(run(config)) == losses(first)


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


def test_train_and_val_can_be_thrown_together_and_split_anew(tiny_data: Path) -> None:
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
    assert (
        "no column that names the images; its columns are picture, kind; name one with --data.image_column"
        in refusal(tmp_path / "a.csv")
    )
    said = refusal(tmp_path / "a.csv", image_column="picture")
    assert "no column that names the classes" in said
    assert "data.label_column is 'species'" in refusal(
        tmp_path / "a.csv", image_column="picture", label_column="species"
    )


def test_rows_that_cannot_be_used_are_listed(tiny_data: Path, tmp_path: Path) -> None:
    rows = rows_of(tiny_data)
    lines = [f"{row['path']},{row['label']},{row['split']}" for row in rows]
    lines[0] = f"{rows[0]['path']},,train"
    lines += [f",{CLASSES[0]},train", lines[5], "x.jpg,red_checks,test", "y.jpg,red_checks,test"]
    root = shutil.copytree(tiny_data, tmp_path / "images")
    (root / "a.csv").write_text("file,class,split\n" + "".join(f"{line}\n" for line in lines))
    found = scan(root / "a.csv")
    assert len(found.samples) == 50
    assert {(s.path, s.reason) for s in found.skipped} == {
        (rows[0]["path"], "no class in row 1"),
        ("row 52", "no path in row 52"),
        (rows[5]["path"], "listed again in row 53"),
        ("split 'test'", "2 rows that neither train nor measure"),
    }


def test_one_image_with_two_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,class\na.jpg,ant\na.jpg,bee\n")
    assert "lists a.jpg as 'ant' and, in row 2, as 'bee'" in refusal(tmp_path / "a.csv")


def test_a_listed_file_that_is_not_there_is_unreadable_by_name(tiny_data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_data, tmp_path / "images")
    name = as_csv(root, root)
    (root / "train/red_checks/red_checks_00.jpg").unlink()
    assert "train/red_checks/red_checks_00.jpg (No such file or directory)" in refusal(name)
    assert len(scan(name, on_bad_file="skip").samples) == 50


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"file,class,split\na.jpg,ant,train\n", "has a split for 'train' alone"),
        ("a.jsonl", b'{"file": "a.jpg"', "cannot be read"),
        ("a.jsonl", b"[1]\n", "expected a JSON object"),
        ("a.tar", b"no tar", "cannot be read as tar"),
        ("a.tar.gz", b"", "is compressed"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
        ("dataset_info.json/state.json", b"{}", "cannot be loaded as a dataset"),
    ],
)
def test_what_cannot_be_read_is_said(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert said in refusal(path.parent if path.name == "state.json" else path)


def test_a_pattern_names_shards_and_a_missing_one_is_said(tiny_data: Path, tmp_path: Path) -> None:
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


@pytest.mark.slow
@pytest.mark.distributed
def test_shards_in_small_windows_train_alike_on_two_processes_and_resume_exactly(
    tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    root = Path(as_parquet_shards(tiny_data, tmp_path / "data"))
    changes = {"data": {"shuffle_images": 10}, "strategy": "frozen_head"}
    whole = run(small(root, tmp_path / "whole", **changes))
    folder = run(small(tiny_data, tmp_path / "folder", **changes))
    assert losses(whole) != losses(folder)  # other batches: windows of 10 images

    config = tmp_path / "two.yaml"
    config.write_text(to_yaml(small(root, tmp_path / "two", **changes)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "-m", "headstart", "train", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), rel=1e-5)

    config.write_text(to_yaml(small(root, tmp_path / "cut", **changes)))
    assert stopped_at(30, config, tmp_path).returncode == 143
    run(small(root, tmp_path / "cut", train={"resume": "auto"}, **changes))
    assert losses(tmp_path / "cut") == losses(whole)
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
