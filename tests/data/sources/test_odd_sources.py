"""Sources with odd names, columns and layouts: read correctly, or refused in one line that names what is at fault."""

import io
import os
import socketserver
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.layouts import as_parquet_shards, as_tar_shards

from headstart.config import DataConfig
from headstart.data.manifest import build_eval_manifest, build_manifest
from headstart.data.samples import Manifest
from headstart.data.sources.open import open_source
from headstart.errors import InputError


def scan(root: Path | str, **changes: Any) -> Manifest:
    data = DataConfig(root=str(root), **changes)
    return build_manifest(open_source(data), data, seed=0, num_threads=2)


def refusal(root: Path | str, **changes: Any) -> str:
    """The message that refuses this source, checked to be one line."""
    with pytest.raises(InputError) as caught:
        scan(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png(number: int, size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 90)).save(out, "PNG")
    return out.getvalue()


def contents(manifest: Manifest) -> set[tuple[str, str]]:
    return set(zip(manifest.samples.column("sha256"), manifest.samples.column("label"), strict=True))


def parquet(path: Path, /, **columns: Any) -> Path:
    """Two classes of three images each, in the columns image and label unless `columns` names others (None: none)."""
    table = {"image": [png(k) for k in range(6)], "label": ["ant", "bee"] * 3} | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: values for name, values in table.items() if values is not None}), path)
    return path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def folders(root: Path, each: int = 3, classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    for code, label in enumerate(classes):
        (root / label).mkdir(parents=True)
        for k in range(each):
            (root / label / f"{k}.png").write_bytes(png(100 * code + k))
    return root


# ------------------------------------------------------------------------------------------------- splits


def test_a_copy_joins_two_patients(tmp_path: Path) -> None:
    patients = [str(k // 2) for k in range(20)]
    images = [png(k) for k in range(20)]
    images[19] = images[0]  # of patients 9 and 0
    path = parquet(tmp_path / "a.parquet", image=images, label=["ant", "bee"] * 9 + ["ant", "ant"], patient=patients)
    for seed in range(8):
        data = DataConfig(root=str(path), group_column="patient", split="stratified", val_fraction=0.3)
        found = build_manifest(open_source(data), data, seed=seed, num_threads=1)
        assert not set(found.of("train").column("sha256")) & set(found.of("val").column("sha256"))


def test_a_class_that_the_split_puts_on_one_side_is_refused_or_left_out(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", classes=("ant", "bee", "cat"), each=4)
    groups = "path,group\n" + "".join(f"cat/{k}.png,1\n" for k in range(4))
    (tmp_path / "groups.csv").write_text(groups)
    changes = {"split": "stratified", "groups": str(tmp_path / "groups.csv"), "val_fraction": 0.3}
    message = refusal(root, **changes)
    assert "'cat'" in message
    assert "train" in message
    assert "4 images" in message
    found = scan(root, on_bad_file="skip", **changes)
    assert found.classes == ("ant", "bee")
    assert [s.path for s in found.skipped] == ["cat"]
    for side in ("train", "val"):
        assert set(found.of(side).column("label")) == {"ant", "bee"}


def test_a_split_without_validation_images_is_refused(tmp_path: Path) -> None:
    message = refusal(folders(tmp_path / "data"), split="stable", val_fraction=0.0001)
    assert "'ant'" in message
    assert "3 images" in message
    assert "--data.folds" in refusal(tmp_path / "data", split="stratified", folds=6, fold=5)


def test_shards_of_which_some_name_no_split_are_refused_unless_all_are_split_anew(tmp_path: Path) -> None:
    for number, name in enumerate(("train-0", "val-0", "more-0")):
        parquet(tmp_path / f"{name}.parquet", image=[png(10 * number + k) for k in range(6)])
    assert "more-0.parquet/0" in refusal(tmp_path)
    assert len(scan(tmp_path, split="stratified", val_fraction=0.3).samples) == 18


def test_train_and_test_shards_can_be_split_anew_and_the_test_shard_evaluated(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "test")):
        parquet(tmp_path / f"{name}-00000-of-00001.parquet", image=[png(10 * number + k) for k in range(6)])
    assert "--data.split stratified" in refusal(tmp_path)
    found = scan(tmp_path, split="stratified", val_fraction=0.3)
    assert len(found.samples) == 6
    assert [s.path for s in found.skipped] == ["test-00000-of-00001.parquet"]
    assert evaluated(tmp_path) == {f"test-00000-of-00001.parquet/{k}" for k in range(6)}
    assert evaluated(tmp_path, split="train") == {f"train-00000-of-00001.parquet/{k}" for k in range(6)}


def evaluated(
    root: Path | str, *, trained: tuple[str, ...] = (), columns: dict[str, str] | None = None, **changes: Any
) -> set[str]:
    source = open_source(DataConfig(root=str(root), **(columns or {})), to_evaluate=True)
    found = build_eval_manifest(
        source, classes=("ant", "bee"), on_bad_file="refuse", trained_on=lambda sha256, path: path in trained, **changes
    )
    return set(found.samples.column("path"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_split_alone_can_be_evaluated_in_every_source(split: str, tmp_path: Path) -> None:
    parquet(tmp_path / "shards" / f"{split}-0.parquet")
    assert len(evaluated(tmp_path / "shards")) == 6
    parquet(tmp_path / "list.parquet", image=None, file=[f"{k}.png" for k in range(6)], split=[split] * 6)
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    assert len(evaluated(tmp_path / "list.parquet")) == 6
    message = evaluation_refusal(tmp_path / "list.parquet", split="extra")
    assert "'extra'" in message
    assert split in message.partition("'extra'")[2]
    tar(tmp_path / f"{split}-1.tar", {"a.png": png(1), "a.cls": b"ant"})
    assert len(evaluated(tmp_path / f"{split}-1.tar")) == 1
    if split == "val":
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            archive.writestr("photos/val/ant/1.png", png(1))
        assert evaluated(tmp_path / "photos.zip", resplit=True) == {"photos/val/ant/1.png"}


def evaluation_refusal(root: Path, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        evaluated(root, **changes)
    return str(caught.value)


def test_the_split_of_the_folder_is_ignored_if_the_run_split_anew(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folders(tmp_path / "data" / split)
    trained = ("val/ant/0.png", "train/bee/1.png")
    assert evaluated(tmp_path / "data", trained=trained) == {
        f"val/{c}/{k}.png" for c in ("ant", "bee") for k in range(3)
    } - set(trained)
    anew = evaluated(tmp_path / "data", trained=trained, resplit=True)
    assert len(anew) == 10
    assert not anew & set(trained)


def test_the_ids_of_copies_do_not_depend_on_their_names(tmp_path: Path) -> None:
    """The order of training follows the ids: they must depend on nothing but content, split and label."""
    table(tmp_path, "")
    (tmp_path / "p.png").write_bytes(png(0))
    (tmp_path / "q.png").write_bytes(png(0))
    ids = []
    for one, other in (("ant", "bee"), ("bee", "ant")):
        table(tmp_path, f"file,label\np.png,{one}\nq.png,{other}\n" + LINES)
        ids.append({(s.id, s.sha256, s.split, s.label) for s in scan(tmp_path / "a.csv", val_fraction=0.4).samples})
    assert len(ids[0]) == 8
    assert ids[0] == ids[1]


# ------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("key", ["image_column", "label_column", "split_column", "group_column"])
def test_a_column_that_a_source_lacks_is_refused(key: str, tmp_path: Path) -> None:
    message = refusal(folders(tmp_path / "data"), **{key: "x"})
    assert f"data.{key}" in message
    assert "'x'" in message
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("ant/1.png", png(1))
    message = refusal(tmp_path / "photos.zip", **{key: "x"})
    assert key in message
    assert "folders" in message


def test_a_tar_shard_has_no_column_for_the_split(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": png(1), "a.cls": b"ant"})
    message = refusal(path, split_column="x")
    assert "split_column" in message
    assert "shard" in message


def test_groups_are_refused_if_the_data_have_a_split(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "val")):
        parquet(tmp_path / f"{name}.parquet", image=[png(10 * number + k) for k in range(6)], patient=list("aabbcc"))
    assert "data.group_column 'patient'" in refusal(tmp_path, group_column="patient")
    assert len(scan(tmp_path, group_column="patient", split="stratified", val_fraction=0.4).samples) == 12


def test_groups_are_given_in_one_way() -> None:
    with pytest.raises(InputError, match=r"data\.groups .*data\.group_column"):
        DataConfig(root="x", split="stratified", groups="(b)", group_column="a")


def test_json_of_tar_shards_holds_group_and_class_and_the_name_of_the_image_is_a_column(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for k in range(12):
        members |= {f"{k}.seg.png": png(50 + k), f"{k}.png": png(k), f"{k}.cls": b"wrong"}
        members[f"{k}.json"] = f'{{"species": "{("ant", "bee")[k % 2]}", "patient": {k // 4}}}'.encode()
    path = tar(tmp_path / "a.tar", members)
    data = {"image_column": "png", "label_column": "species", "group_column": "patient", "val_fraction": 0.3}
    found = scan(path, **data)
    assert found.classes == ("ant", "bee")
    assert {p.rpartition("/")[2] for p in found.samples.column("path")} == {f"{k}.png" for k in range(12)}
    patients = [{int(p.rpartition("/")[2][:-4]) // 4 for p in found.of(s).column("path")} for s in ("train", "val")]
    assert not patients[0] & patients[1]
    message = refusal(path, **(data | {"group_column": "ward"}))
    assert "group_column" in message
    assert "'ward'" in message


def test_a_split_column_holds_train_and_val_in_shards_and_saved_datasets(tmp_path: Path) -> None:
    fold = ["train", "train", "train", "val", "val", "val"]
    path = parquet(tmp_path / "a" / "data.parquet", fold=fold)
    assert [len(scan(path, split_column="fold").of(s)) for s in ("train", "val")] == [3, 3]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("string"), "split": datasets.Value("string")}
    )
    rows = {"image": [{"bytes": png(k), "path": None} for k in range(6)], "label": ["ant", "bee"] * 3, "split": fold}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    assert [len(scan(tmp_path / "saved").of(s)) for s in ("train", "val")] == [3, 3]


def test_another_column_of_images_is_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = parquet(tmp_path / "a.parquet", thumbnail=[png(200 + k) for k in range(6)])
    os.utime(path, (1e9, 1e9))
    data = [scan(path), scan(path, image_column="thumbnail"), scan(path)]
    assert not contents(data[0]) & contents(data[1])
    assert contents(data[0]) == contents(data[2])


def test_the_column_of_images_is_distinguished_from_other_columns_of_bytes(tmp_path: Path) -> None:
    ids = [bytes([k]) for k in range(6)]
    assert len(scan(parquet(tmp_path / "a.parquet", id=ids, image=[png(k) for k in range(6)])).samples) == 6
    both = parquet(tmp_path / "b.parquet", id=ids, image=None, scan=[png(k) for k in range(6)])
    assert "id, scan" in refusal(both)
    assert len(scan(both, image_column="scan").samples) == 6
    message = refusal(both, image_column="nope")
    assert "image_column" in message
    assert "'nope'" in message


def test_a_table_of_paths_beside_a_column_of_bytes(tmp_path: Path) -> None:
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    names = [f"{k}.png" for k in range(6)]
    path = parquet(tmp_path / "a.parquet", image=None, blob=[b"x"] * 6, where=names)
    assert len(scan(path, image_column="where").samples) == 6
    assert len(scan(parquet(tmp_path / "b.parquet", image=None, blob=[b"x"] * 6, path=names)).samples) == 6


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:30] + bytes(370) + content[400:])
    assert "a.parquet, row group 0" in refusal(path)
    path = parquet(tmp_path / "b.parquet", image=None, file=[f"{k}.png" for k in range(6)])
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(60) + content[64:])
    assert "b.parquet, row group 0" in refusal(path)


@pytest.mark.parametrize(
    ("columns", "changes", "fragments"),
    [
        ({"image": [{"bytes": None, "path": "x.png"}] * 6}, {}, ("no image", "'x.png'")),
        ({"label": pa.array([0, 1, 2, 0, 1, 0])}, {"names": ["ant", "bee"]}, ("row 2", "class is 2", "2 classes")),
        ({"label": pa.array([0, 1, -2, 0, 1, 0])}, {"names": ["ant", "bee"]}, ("row 2", "class is -2")),
        ({"label": [["ant", "bee"]] * 6}, {}, ("ant", "bee", "--label_column")),
        ({"image": [], "label": pa.array([], pa.string())}, {}, ("a.parquet", "no image")),
    ],
    ids=["path", "beyond", "negative", "several", "empty"],
)
def test_rows_of_shards_that_cannot_be_used_are_named(
    columns: Any, changes: Any, fragments: tuple[str, ...], tmp_path: Path
) -> None:
    if columns.get("image") == []:
        columns["image"] = pa.array([], pa.binary())
    message = refusal(named(parquet(tmp_path / "a.parquet", **columns), changes.get("names")))
    for fragment in fragments:
        assert fragment in message


def named(path: Path, names: list[Any] | None) -> Path:
    """With the names of the classes as datasets writes them."""
    if names is not None:
        about = f'{{"info": {{"features": {{"label": {{"names": {names!r}, "_type": "ClassLabel"}}}}}}}}'.replace(
            "'", '"'
        )
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": about}), path)
    return path


def test_names_of_classes_may_be_numbers_and_labels_bytes(tmp_path: Path) -> None:
    path = named(parquet(tmp_path / "a.parquet", label=pa.array([0, 1, 0, 1, 0, 1])), [7, 9])
    assert scan(path).classes == ("7", "9")
    assert scan(parquet(tmp_path / "b.parquet", label=[b"ant", b"bee"] * 3)).classes == ("ant", "bee")


# ------------------------------------------------------------------------------------------------- tables


def table(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    for k in range(6):
        (folder / f"{k}.png").write_bytes(png(k))
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


LINES = "".join(f"{k}.png,{('ant', 'bee')[k % 2]}\n" for k in range(6))


@pytest.mark.parametrize(
    "text",
    [
        "file,label,\n" + LINES.replace("\n", ",\n"),
        "file,label\n" + LINES.replace("\n", ",,\n"),
        ("file,label\n" + LINES).encode("utf-16"),
        "image,file_name,label\n" + "".join(f"{k},{line}\n" for k, line in enumerate(LINES.splitlines())),
    ],
    ids=["trailing comma", "more fields than columns", "utf-16", "a number and a name"],
)
def test_tables_as_spreadsheets_write_them(text: str | bytes, tmp_path: Path) -> None:
    assert len(scan(table(tmp_path, text), val_fraction=0.4).samples) == 6


def test_every_line_of_a_jsonl_may_bring_a_column(tmp_path: Path) -> None:
    lines = ['{"file": "0.png", "label": "ant"}']
    lines += [
        f'{{"file": "{k}.png", "label": "{("ant", "bee")[k % 2]}", "split": "{"train" if k < 4 else "val"}"}}'
        for k in range(1, 6)
    ]
    found = scan(table(tmp_path, "\n".join(lines), "a.jsonl"))
    assert [len(found.of(split)) for split in ("train", "val")] == [3, 2]
    assert [(s.path, s.reason.split()[0]) for s in found.skipped] == [("split ''", "1")]


def test_a_name_with_nul_is_refused(tmp_path: Path) -> None:
    assert "NUL" in refusal(table(tmp_path, "file,label\n0\0.png,ant\n1.png,bee\n"))


def test_a_folder_of_tables_of_paths_is_refused_unless_it_is_one(tmp_path: Path) -> None:
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    columns = {"image": None, "path": [f"{k}.png" for k in range(6)]}
    parquet(tmp_path / "a.parquet", **columns)
    assert len(scan(tmp_path, val_fraction=0.4).samples) == 6
    parquet(tmp_path / "b.parquet", **columns)
    assert "paths" in refusal(tmp_path)


def test_parts_of_a_saved_dataset_may_name_their_columns_differently(tmp_path: Path) -> None:
    def part(label: str | None) -> datasets.Dataset:
        features = {"image": datasets.Image(), "other": datasets.Image()} | (
            {label: datasets.Value("string")} if label else {}
        )
        rows = {
            "image": [{"bytes": png(k), "path": None} for k in range(4)],
            "other": [{"bytes": b"no", "path": None}] * 4,
        }
        return datasets.Dataset.from_dict(
            rows | ({label: ["ant", "bee"] * 2} if label else {}), features=datasets.Features(features)
        )

    datasets.DatasetDict({"train": part("label"), "validation": part("species"), "test": part(None)}).save_to_disk(
        tmp_path / "a"
    )
    found = scan(tmp_path / "a")
    assert [len(found.of(split)) for split in ("train", "val")] == [4, 4]
    assert [s.path for s in found.skipped] == ["split 'test'"]
    datasets.DatasetDict({"train": part("label"), "validation": part(None)}).save_to_disk(tmp_path / "b")
    message = refusal(tmp_path / "b")
    assert "b, validation" in message
    assert "label_column" in message


# ------------------------------------------------------------------------------------------------- files and folders


def test_shards_beside_class_folders_do_not_change_what_the_folder_is(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    before = contents(scan(root))
    tar(root / "backup.tar", {"a.png": png(1), "a.cls": b"cat"})
    parquet(root / "manifest.parquet")
    assert contents(scan(root)) == before


def test_hidden_shards_are_passed_over_and_capitals_are_read(tmp_path: Path) -> None:
    tar(
        tmp_path / "A.TAR",
        {
            f"{k}.{name}": content
            for k in range(6)
            for name, content in (("png", png(k)), ("cls", (b"ant", b"bee")[k % 2]))
        },
    )
    (tmp_path / "._A.TAR").write_bytes(b"resource fork")
    assert set(scan(tmp_path).samples.column("path")) == {f"A.TAR/{k}.png" for k in range(6)}


@pytest.mark.parametrize("name", ["photos [1]", "{a,b}", "dev", "what?", "x*y"])
def test_a_folder_of_shards_may_have_an_odd_name(name: str, tiny_data: Path, tmp_path: Path) -> None:
    root = tmp_path / name
    root.mkdir()
    as_parquet_shards(tiny_data, root)
    expected = scan(tiny_data).sha256
    assert scan(root).sha256 == expected
    if "*" not in name and "{" not in name:
        assert scan(f"{root}/*.parquet").sha256 == expected
        assert scan(f"{root}/{{train,val}}-*.parquet").sha256 == expected
    (root / "deep/er").mkdir(parents=True)
    for path in root.glob("*.parquet"):
        path.rename(root / "deep/er" / path.name)
    assert scan(root).sha256 == expected


def test_files_behind_a_file_url(tiny_data: Path, tmp_path: Path) -> None:
    as_tar_shards(tiny_data, tmp_path)
    for root in (tmp_path.as_uri(), f"{tmp_path.as_uri()}/*.tar"):
        found = scan(root)
        assert found.sha256 == scan(tiny_data).sha256
        assert found.samples[0].path.startswith("train-00")


def test_a_single_shard_in_a_folder_named_like_a_split_has_none(tmp_path: Path) -> None:
    path = parquet(tmp_path / "dev" / "a.parquet")
    assert {len(scan(root, val_fraction=0.4).samples) for root in (path, path.parent)} == {6}


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.data.sources import parquet_shards

    monkeypatch.setattr(parquet_shards, "KEPT_FILES", 3)
    for number in range(12):
        parquet(tmp_path / f"part-{number:02d}.parquet", image=[png(10 * number + k) for k in range(6)])
    before = len(os.listdir("/proc/self/fd"))
    found = scan(tmp_path)
    assert len(found.samples) == 72
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_row_group_is_read_once_or_twice_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.data import sampling
    from headstart.data.sources import parquet_shards

    images = [png(k, (8 + k % 5, 8)) + bytes(4000) for k in range(240)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images, "label": ["ant", "bee"] * 120}), path, row_group_size=12)
    found = scan(path, val_fraction=0.1).of("train")
    monkeypatch.setattr(sampling, "WINDOW_BYTES", 200_000)  # four row groups
    monkeypatch.setattr(parquet_shards, "KEPT_BYTES", 400_000)
    blocks = sampling.Blocks.of(found.column("block"), found.column("size"), size=10_000)
    assert blocks is not None
    read: Counter[int] = Counter()
    original = parquet_shards._Files._row_group
    monkeypatch.setattr(
        parquet_shards._Files,
        "_row_group",
        lambda self, short, group: read.update([group]) or original(self, short, group),
    )
    fresh = open_source(DataConfig(root=str(path)))  # the scan keeps what it read
    order, _ = sampling.epoch_draws(sampling.keys_of(found.column("id")), seed=0, epoch=0, blocks=blocks)
    for index in order.tolist():
        fresh.read(found[index].path)
    assert set(read) == set(range(20))
    assert max(read.values()) <= 2
    assert len(set(blocks.windows(seed=0, epoch=0).tolist())) >= 5


def test_a_pipe_is_refused_and_not_read(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    os.mkfifo(root / "ant" / "pipe.png")
    assert "ant/pipe.png (not a regular file" in refusal(root)
    (tmp_path / "a.csv").write_text(
        "file,label\ndata/ant/pipe.png,ant\n" + "".join(f"data/bee/{k}.png,bee\n" for k in range(3))
    )
    assert "pipe.png (not a regular file" in refusal(tmp_path / "a.csv")


def test_a_class_folder_that_is_a_link_to_another_holds_its_images(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    (root / "also").symlink_to(root / "bee", target_is_directory=True)
    (root / "bee" / "loop").symlink_to(root, target_is_directory=True)
    found = scan(root, val_fraction=0.4)
    assert sorted(found.samples.column("label")) == ["also"] * 3 + ["ant"] * 3 + ["bee"] * 3


@pytest.mark.parametrize(
    ("members", "fragments"),
    [
        ({"ant/1.png": b"", "bee/1.png": b""}, ("a.tar/ant/1 (", ".cls", ".json")),
        ({"1.cls": b"ant"}, ("a.tar/1 (no image",)),
        ({}, ("a.tar", "no image")),
    ],
)
def test_a_tar_without_samples_is_refused_with_what_is_expected(
    members: dict[str, bytes], fragments: tuple[str, ...], tmp_path: Path
) -> None:
    for message in (refusal(tar(tmp_path / "a.tar", members)), evaluation_refusal(tmp_path / "a.tar")):
        for fragment in fragments:
            assert fragment in message


def test_only_test_shards_are_refused(tmp_path: Path) -> None:
    assert "test-0.parquet (" in refusal(parquet(tmp_path / "test-0.parquet"))


@pytest.mark.parametrize("prefix", ["./", "/", "photos\\", "./photos/", "photos//"])
def test_every_style_of_names_in_a_zip_is_read(prefix: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for code, label in enumerate(("ant", "bee")):
            for k in range(3):
                separator = "\\" if "\\" in prefix else "/"
                archive.writestr(f"{prefix}{label}{separator}{k}.png", png(100 * code + k))
    assert contents(scan(tmp_path / "a.zip")) == contents(scan(folders(tmp_path / "data")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_a_zip_lists_twice_counts_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for k in (0, 1, 2, 0):
            archive.writestr(f"ant/{k}.png", png(k + len(archive.infolist())))
            archive.writestr(f"bee/{k}.png", png(100 + k + len(archive.infolist())))
    found = scan(tmp_path / "a.zip")
    assert len(found.samples) == 6
    assert {s.path for s in found.skipped} == {"ant/0.png", "bee/0.png"}


def test_a_zip_of_one_half_of_a_split(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folders(tmp_path / "data").glob("*/*")):
            archive.write(path, f"photos/train/{path.parent.name}/{path.name}")
    message = refusal(tmp_path / "a.zip")
    assert "a.zip" in message
    assert "--data.split stratified" in message
    assert len(scan(tmp_path / "a.zip", split="stratified").samples) == 6


# ------------------------------------------------------------------------------------------------- behind a URL


class Files(BaseHTTPRequestHandler):
    """A folder, read only, with ranges."""

    folder: Path

    def _answer(self, *, body: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        content = path.read_bytes() if path.is_file() else None
        if content is None:
            self.send_error(404)
            return
        whole, wanted = len(content), self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{whole}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """http://127.0.0.1:PORT of `tmp_path`."""
    handler = type("Handler", (Files,), {"folder": tmp_path})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as serving:
        serving.daemon_threads = True
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


@pytest.mark.parametrize("way", [as_tar_shards, as_parquet_shards])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a client of the forked process is ended with it
def test_shards_behind_http_are_read_in_forked_workers(
    way: Callable[[Path, Path], str], server: str, tiny_data: Path, tmp_path: Path
) -> None:
    way(tiny_data, tmp_path)
    pattern = "{train-{000..001},val-000}.tar" if way is as_tar_shards else "{train,val}-00000-of-00001.parquet"
    manifest = scan(f"{server}/{pattern}")
    assert manifest.sha256 == scan(tiny_data).sha256
    paths = manifest.samples.column("path")[::5]
    assert all("/" in path and not path.startswith("http") for path in paths)
    there = torch.utils.data.DataLoader(
        paths, batch_size=None, num_workers=2, collate_fn=manifest.source.read, multiprocessing_context="fork"
    )
    assert list(there) == [manifest.source.read(path) for path in paths]


def test_a_shard_that_the_server_lacks_is_named(server: str) -> None:
    assert "nowhere.tar" in refusal(f"{server}/nowhere.tar")
