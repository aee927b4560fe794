"""Sources with odd names, columns and layouts: read correctly, or refused in one line that names what is at fault."""

import io
import json
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.file_server import FileServer, serving_files_of
from support.layouts import as_parquet_shards, as_tar_shards

from headstart.config import DataConfig
from headstart.data.eval_manifest import build_eval_manifest
from headstart.data.manifest import build_manifest
from headstart.data.samples import Manifest
from headstart.data.sources.open import open_source
from headstart.errors import InputError
from headstart.predict.image_paths import images


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
    found = scan(tmp_path, split="stratified", val_fraction=0.3)
    assert len(found.samples) == 6
    assert found.samples == scan(tmp_path, val_fraction=0.3).samples
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
        ({"label": [["ant", "bee"]] * 6}, {}, ("a.parquet, row 0", "label", "['ant', 'bee']", "one class")),
        ({"label": [["ant"]] * 6}, {}, ("row 0", "['ant']", "one class")),
        ({"image": [], "label": pa.array([], pa.string())}, {}, ("a.parquet", "no image")),
    ],
    ids=["path", "beyond", "negative", "several", "a list of one", "empty"],
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
        ",file,label\n" + "".join(f"{k},{line}\n" for k, line in enumerate(LINES.splitlines())),
        "file,label,note\n" + LINES,
        "file, label\n" + LINES.replace(",", ", "),
        " file ,label \n" + LINES.replace(",", ' , "').replace("\n", '"\n'),
        "\n  \n,,\nfile,label\n" + LINES.replace("\n", "\n\n"),
        ("file;label\n" + LINES.replace(",", ";")).encode("utf-8-sig"),
        "sep=;\nfile;label\n" + LINES.replace(",", ";"),
        ("file\tlabel\n" + LINES.replace(",", "\t")).encode("utf-16"),
    ],
    ids=[
        "trailing comma",
        "more fields than columns",
        "utf-16",
        "a number and a name",
        "row numbers without a name",
        "rows without the last column, which is not used",
        "spaces after commas",
        "spaces and quotes",
        "blank lines",
        "semicolons and a byte order mark",
        "sep=;",
        "tabs in utf-16",
    ],
)
def test_tables_as_spreadsheets_write_them(text: str | bytes, tmp_path: Path) -> None:
    found = scan(table(tmp_path, text), val_fraction=0.4)
    assert (len(found.samples), found.classes, found.skipped) == (6, ("ant", "bee"), ())


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_every_value_may_be_in_quotes(separator: str, name: str, tmp_path: Path) -> None:
    rows = [line.split(",") for line in ("file,label\n" + LINES).splitlines()]
    text = "".join(separator.join(f'"{value}"' for value in row) + "\n" for row in rows)
    path = table(tmp_path, text, name)
    assert len(scan(path, val_fraction=0.4).samples) == 6
    assert [Path(image.path).name for image in images([str(path)])] == [f"{k}.png" for k in range(6)]


def test_the_separator_of_a_tsv_is_recognised_by_its_header(tmp_path: Path) -> None:
    assert len(scan(table(tmp_path, "file,label\n" + LINES, "a.tsv"), val_fraction=0.4).samples) == 6


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("file,label\n" + LINES.replace("bee", "bee, honey"), ("row 2 (line 3)", "3 values", "2 columns", "quotes")),
        ("file,label,\n" + LINES.replace("bee", "bee, honey"), ("row 2", "3 values", "2 columns")),
        ("file;label\n" + LINES.replace(",", ";").replace("bee", "1;5"), ("row 2", "a semicolon in quotes")),
        ("file,label\n" + LINES.replace("3.png,bee", '3.png,"bee'), ("row 4 (line 5)", "quote")),
        ("file,label\n" + LINES.replace("3.png,bee", '3.png,"bee').replace("5.png,bee", '5.png,"bee"'), ("row 4",)),
        ('file,"label\n' + LINES, ("line 1", "quote")),
        ('\nfile,label\n"0.png",ant\n\n"1.png,bee\n' + "x" * 200_000, ("row 2 (line 5)", "quote", "characters")),
        ("file,label\n" + LINES.replace("3.png,bee", "3.png"), ("row 4 (line 5)", "1 value", "'label'")),
        (
            "file,label,split\n" + LINES.replace("ant\n", "ant,train\n").replace("3.png,bee", "3.png,bee,val"),
            ("row 2", "2 values", "'split'"),
        ),
        ("file,label,label\n" + LINES.replace("\n", ",x\n"), ("several", "'label'")),
        ("file,label\n" + LINES.replace("bee", "käfer"), ("line 3", "UTF-8", "0xe4")),
        (LINES, ("0.png, ant", "first line")),
        ("file|label\n" + LINES.replace(",", "|"), ("|", "not a supported separator", "a comma")),
        ('"file"|"label"\n' + LINES.replace(",", "|"), ("|", "not a supported separator")),
        ("photo|kind\n" + LINES.replace(",", "|"), ("|", "not a supported separator")),
        (("file,label\n" + LINES).encode("utf-16-le").decode(), ("looks like UTF-16", "save it as UTF-8")),
        (("file;label\n" + LINES).encode("utf-16-be").decode(), ("looks like UTF-16", "save it as UTF-8")),
    ],
    ids=[
        "comma in a class",
        "comma in a class, and one after the header",
        "decimal comma",
        "open quote",
        "quotes that pair across rows",
        "open quote in the header",
        "open quote of a large file",
        "no label",
        "no split",
        "a column twice",
        "latin-1",
        "no header",
        "pipes",
        "pipes and quotes",
        "pipes and other names",
        "utf-16-le",
        "utf-16-be",
    ],
)
def test_a_text_that_is_not_a_table_is_refused_with_its_row(
    text: str, fragments: tuple[str, ...], tmp_path: Path
) -> None:
    message = refusal(table(tmp_path, text.encode("latin-1")))
    for fragment in ("a.csv", *fragments):
        assert fragment in message
    assert len(message) < 300


def test_a_column_that_occurs_twice_is_refused_in_every_table(tmp_path: Path) -> None:
    names = pa.array([f"{k}.png" for k in range(6)])
    pq.write_table(
        pa.Table.from_arrays([names, names, names], names=["file", "label", "label"]), tmp_path / "a.parquet"
    )
    assert "'label'" in refusal(tmp_path / "a.parquet")
    columns = [pa.array([png(k) for k in range(6)]), names, names]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "label", "label"]), tmp_path / "shard.parquet")
    assert "shard.parquet has several columns named 'label'" in refusal(tmp_path / "shard.parquet")
    message = refusal(table(tmp_path, '{"file": "0.png", "label": "ant", "label": "bee"}', "a.jsonl"))
    assert "line 1" in message
    assert "twice" in message


def test_spaces_around_the_name_of_a_column_do_not_matter(tmp_path: Path) -> None:
    table(tmp_path, "")
    data = {"image": None, "label": None, " file": [f"{k}.png" for k in range(6)], " kind ": ["ant", "bee"] * 3}
    path = parquet(tmp_path / "a.parquet", **data)
    assert len(scan(path, label_column="kind", val_fraction=0.4).samples) == 6


@pytest.mark.parametrize(
    ("values", "splits"),
    [
        ([0, 0, 0, 0, 1, 1], {"train": 4, "val": 2}),
        (["False"] * 4 + ["TRUE"] * 2, {"train": 4, "val": 2}),
        (["no"] * 4 + ["yes"] * 2, {"train": 4, "val": 2}),
    ],
)
def test_a_column_is_valid_is_a_split(values: list[Any], splits: dict[str, int], tmp_path: Path) -> None:
    lines = "".join(f"{line},{value}\n" for line, value in zip(LINES.splitlines(), values, strict=True))
    found = scan(table(tmp_path, "file,label,is_valid\n" + lines))
    assert Counter(found.samples.column("split")) == splits
    data = {
        "image": None,
        "file": [f"{k}.png" for k in range(6)],
        "is_val": [value in (1, "TRUE", "yes") for value in values],
    }
    assert Counter(scan(parquet(tmp_path / "a.parquet", **data)).samples.column("split")) == splits


def test_a_column_is_test_leaves_the_split_to_headstart(tmp_path: Path) -> None:
    lines = "".join(f"{line},{float(k > 3)}\n" for k, line in enumerate(LINES.splitlines()))
    found = scan(table(tmp_path, "file,label,is_test\n" + lines), val_fraction=0.5)
    assert sorted(found.samples.column("path")) == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize("order", [("is_valid", "is_test"), ("is_test", " Is_Valid")])
def test_is_valid_and_is_test_are_one_split(order: tuple[str, str], tmp_path: Path) -> None:
    values = [f"{valid},{test}" for valid, test in zip("001011", "000011", strict=True)]  # is_test wins
    values = values if order[0] == "is_valid" else [value[::-1] for value in values]
    lines = "".join(f"{line},{value}\n" for line, value in zip(LINES.splitlines(), values, strict=True))
    path = table(tmp_path, f"file,label,{','.join(order)}\n" + lines)
    entries = open_source(DataConfig(root=str(path))).scan().entries
    assert [entry.split for entry in entries] == ["train", "train", "val", "train", "test", "test"]
    named = open_source(DataConfig(root=str(path), split_column=order[0])).scan().entries
    assert {entry.split for entry in named} == ({"train", "val"} if order[0] == "is_valid" else {None, "test"})


@pytest.mark.parametrize(
    ("column", "values", "fragments"),
    [
        ("split", [0, 0, 0, 0, 1, 1], ("'0' and '1'", "train, val or test", "is_valid")),
        ("is_valid", [0, 0, 0, "maybe", 1, 1], ("row 4", "is_valid", "'maybe'")),
        ("is_valid,is_val", ["0,0"] * 6, ("is_valid and is_val", "--data.split_column")),
        ("is_valid,is_test", ["0,0"] * 3 + ["0,maybe"] * 3, ("row 4", "is_test", "'maybe'")),
    ],
)
def test_a_split_of_other_values_is_refused_with_them(
    column: str, values: list[Any], fragments: tuple[str, ...], tmp_path: Path
) -> None:
    lines = "".join(f"{line},{value}\n" for line, value in zip(LINES.splitlines(), values, strict=True))
    message = refusal(table(tmp_path, f"file,label,{column}\n" + lines))
    for fragment in ("a.csv", *fragments):
        assert fragment in message


# ------------------------------------------------------------------------------------------------- labels


def in_a_csv(folder: Path, labels: list[Any]) -> Path:
    return table(folder, "file,label\n" + "".join(f"{k}.png,{label}\n" for k, label in enumerate(labels)))


def in_a_jsonl(folder: Path, labels: list[Any]) -> Path:
    rows = [{"file": f"{k}.png", "label": label} for k, label in enumerate(labels)]
    return table(folder, "".join(json.dumps(row) + "\n" for row in rows), "a.jsonl")


def in_a_table(folder: Path, labels: list[Any]) -> Path:
    in_a_jsonl(folder, labels)
    return parquet(folder / "a.parquet", image=None, file=[f"{k}.png" for k in range(6)], label=labels)


def in_a_parquet_shard(folder: Path, labels: list[Any]) -> Path:
    return parquet(folder / "shard.parquet", label=labels)


def in_the_json_of_a_tar(folder: Path, labels: list[Any]) -> Path:
    members: dict[str, bytes] = {}
    for k, label in enumerate(labels):
        members |= {f"{k}.png": png(k), f"{k}.json": json.dumps({"label": label}).encode()}
    return tar(folder / "json.tar", members)


def in_the_cls_of_a_tar(folder: Path, labels: list[Any]) -> Path:
    members: dict[str, bytes] = {}
    for k, label in enumerate(labels):
        members |= {f"{k}.png": png(k), f"{k}.cls": f"{label}\n".encode()}
    return tar(folder / "cls.tar", members)


def in_a_saved_dataset(folder: Path, labels: list[Any]) -> Path:
    rows = {"image": [{"bytes": png(k), "path": None} for k in range(6)], "label": labels}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(folder / "saved")
    return folder / "saved"


HOLDERS = [
    in_a_csv,
    in_a_jsonl,
    in_a_table,
    in_a_parquet_shard,
    in_the_json_of_a_tar,
    in_the_cls_of_a_tar,
    in_a_saved_dataset,
]


SPELLINGS: list[tuple[list[Any], tuple[str, str]]] = [
    ([0, 1], ("0", "1")),
    ([0.0, 1.0], ("0", "1")),
    (["0.0", "1.00"], ("0", "1")),
    ([-0.0, 1.0], ("0", "1")),
    (["-0", "+1"], ("0", "1")),
    (["+1.0", "-1.0"], ("-1", "1")),
    ([-1, 1], ("-1", "1")),
    ([0.5, 1.0], ("0.5", "1")),
    (["01", "v1.0"], ("01", "v1.0")),
    ([False, True], ("false", "true")),
    (["TRUE", "False"], ("false", "true")),
]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_label_is_the_same_class_in_every_source(holder: Callable[[Path, list[Any]], Path], tmp_path: Path) -> None:
    for number, (labels, classes) in enumerate(SPELLINGS):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = scan(holder(folder, labels * 3), val_fraction=0.4)
        assert (found.classes, len(found.samples)) == (classes, 6), labels


@pytest.mark.parametrize("holder", [in_a_jsonl, in_a_table, in_the_json_of_a_tar, in_a_saved_dataset])
def test_several_classes_of_an_image_are_refused_with_row_and_column(
    holder: Callable[[Path, list[Any]], Path], tmp_path: Path
) -> None:
    for number, label in enumerate((["ant", "insect"], ["ant"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = holder(folder, [label] * 6)
        message = refusal(path)
        row = "0.json" if path.suffix == ".tar" else "row 0" if path.name == "saved" else "row 1"
        for fragment in (path.name, row, "label", str(label), "one class"):
            assert fragment in message


@pytest.mark.parametrize("label", ["['ant', 'insect']", '["ant"]', "[1, 2]", "[null]", "['ant' 'insect']"])
def test_the_text_of_a_list_is_refused_as_the_list_is(label: str, tmp_path: Path) -> None:
    quoted = label.replace('"', '""')
    message = refusal(in_a_csv(tmp_path, ["bee", f'"{quoted}"', *["bee"] * 4]))
    for fragment in ("a.csv, row 2", "column label holds a list", label, "one class"):
        assert fragment in message


def test_a_class_may_be_in_brackets(tmp_path: Path) -> None:
    assert scan(in_a_csv(tmp_path, ["[ant]", "[bee"] * 3), val_fraction=0.4).classes == ("[ant]", "[bee")


def test_minus_one_is_no_class_where_the_classes_have_names(tmp_path: Path) -> None:
    labels = [0, 1, 0, 1, 0, -1]
    path = named(parquet(tmp_path / "a.parquet", label=pa.array(labels)), ["ant", "bee"])
    found = scan(path, val_fraction=0.4)
    assert (found.classes, len(found.samples), [s.path for s in found.skipped]) == (("ant", "bee"), 5, ["a.parquet/5"])
    rows = {"image": [{"bytes": png(k), "path": None} for k in range(6)], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    found = scan(tmp_path / "saved", val_fraction=0.4)
    assert (found.classes, len(found.samples)) == (("ant", "bee"), 5)


# ------------------------------------------------------------------------------------------------- paths of Windows


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_backslashes_are_slashes_if_only_such_a_file_exists(name: str, tmp_path: Path) -> None:
    def rows(prefix: str) -> Path:
        paths = [f"{prefix}{('ant', 'bee')[k % 2]}{k}.png" for k in range(6)]
        labels = ["ant", "bee"] * 3
        if name.endswith("parquet"):
            return parquet(tmp_path / name, image=None, file=paths, label=labels)
        if name.endswith("jsonl"):
            rows = zip(paths, labels, strict=True)
            return table(tmp_path, "".join(json.dumps({"file": p, "label": n}) + "\n" for p, n in rows), name)
        separator = "\t" if name.endswith("tsv") else ","
        lines = [("file", "label"), *zip(paths, labels, strict=True)]
        return table(tmp_path, "".join(separator.join(line) + "\n" for line in lines), name)

    (tmp_path / "d" / "e").mkdir(parents=True)
    for k in range(6):
        (tmp_path / "d" / "e" / f"{('ant', 'bee')[k % 2]}{k}.png").write_bytes(png(k))
    found = scan(rows("d\\e\\"), val_fraction=0.4)
    assert found.samples.column("path")[0].startswith("d\\e\\")  # as the table has it, so that rows join
    assert contents(found) == contents(scan(rows("d\\e/"), val_fraction=0.4))
    (tmp_path / "d\\e\\ant0.png").write_bytes(png(77))  # a name with backslashes is taken as it is
    assert contents(scan(rows("d\\e\\"), val_fraction=0.4)) != contents(found)
    message = refusal(rows("C:\\photos\\"))
    for fragment in (name, "C:\\photos\\ant0.png", "Windows drive", "relative"):
        assert fragment in message


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


# ------------------------------------------------------------------------------------------------- names


def zip_of(path: Path, names: dict[str, bytes], *, extra: bool = False) -> Path:
    """A zip of the folder of `folders`, without the flag of UTF-8. names: label -> its bytes in the archive; extra:
    with Info-ZIP's field of the name in UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        for code, label in enumerate(names):
            for k in range(3):
                entry = zipfile.ZipInfo(f"class{code}/{k}.png")
                if extra:
                    name = f"{label}/{k}.png".encode()
                    written = names[label] + entry.filename[6:].encode()
                    content = struct.pack("<BL", 1, zlib.crc32(written)) + name
                    entry.extra = struct.pack("<HH", 0x7075, len(content)) + content
                archive.writestr(entry, png(100 * code + k))
    data = path.read_bytes()
    for code, written in enumerate(names.values()):
        assert len(written) == 6
        data = data.replace(f"class{code}".encode(), written)
    path.write_bytes(data)
    return path


UTF8, CP850 = {"Thé__": "Thé__".encode(), "Café_": "Café_".encode()}, {"Thé___": b"Th\x82___", "Café__": b"Caf\x82__"}


def test_names_in_a_zip_are_utf_8_also_without_the_flag(tmp_path: Path) -> None:
    assert scan(zip_of(tmp_path / "a.zip", UTF8), val_fraction=0.4).classes == ("Café_", "Thé__")
    with_field = scan(zip_of(tmp_path / "b.zip", CP850, extra=True), val_fraction=0.4)
    assert with_field.classes == ("Café__", "Thé___")
    assert contents(with_field) == {(sha, f"{label}_") for sha, label in contents(scan(tmp_path / "a.zip"))}


def test_names_in_a_zip_of_an_unknown_encoding_are_refused_once_per_folder(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", CP850 | {"tea___": b"tea___", "rum___": b"rum___"})
    message = refusal(path)
    for fragment in ("2 ", r"Caf\x82__/", "unzip -O", "CP936", "CP932"):
        assert fragment in message
    assert scan(path, on_bad_file="skip", val_fraction=0.4).classes == ("rum___", "tea___")


def test_in_a_zip_only_names_of_classes_must_be_in_a_known_encoding(tmp_path: Path) -> None:
    assert "unzip -O" in refusal(zip_of(tmp_path / "a.zip", CP850))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for code, label in enumerate(("ant", "bee")):
            for k in range(3):
                archive.writestr(f"XXXX/{label}/XXXX {k}.png", png(100 * code + k))
    path = tmp_path / "b.zip"
    written = path.read_bytes()
    for name in ("照片".encode("gbk"), "表表".encode("shift-jis")):  # the second has backslashes as halves of letters
        path.write_bytes(written.replace(b"XXXX", name))
        found = scan(path, val_fraction=0.4)
        assert contents(found) == contents(scan(folders(tmp_path / name.hex())))
        assert all(found.source.read(sample.path) for sample in found.samples)


def test_a_class_folder_whose_name_is_not_utf_8_is_named_once(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    odd = os.fsencode(root) + b"/Caf\xe9"
    os.makedirs(odd + b"/deep")
    for k in range(3):
        for inside in (b"/", b"/deep/"):
            Path(os.fsdecode(odd + inside + b"%d.png" % k)).write_bytes(png(50 + k))
    message = refusal(root)
    assert "1 " in message
    assert message.count("udce9") == 1
    assert r"Caf\udce9/ (" in message
    found = scan(root, on_bad_file="skip", val_fraction=0.4)
    assert found.classes == ("ant", "bee")
    assert [s.path for s in found.skipped] == [r"Caf\udce9/"]


NFC, NFD = "Café", unicodedata.normalize("NFD", "Café")


def test_accents_composed_and_decomposed_are_the_same_class(tmp_path: Path) -> None:
    for split, labels in (("train", (NFC, "tea")), ("val", (NFD, " tea"))):
        folders(tmp_path / "data" / split, classes=labels)
    assert scan(tmp_path / "data").classes == (NFC, "tea")
    source = open_source(DataConfig(root=str(tmp_path / "data")))
    found = build_eval_manifest(  # a model of an earlier version
        source, classes=(NFD, "tea "), on_bad_file="refuse", trained_on=lambda sha256, path: False
    )
    assert Counter(found.samples.column("label")) == {NFD: 3, "tea ": 3}
    assert set(found.samples.codes(found.classes).tolist()) == {0, 1}


@pytest.mark.parametrize(("stored", "listed"), [(NFC, NFD), (NFD, NFC)])
def test_a_table_may_spell_the_accents_of_a_file_in_another_form(stored: str, listed: str, tmp_path: Path) -> None:
    (tmp_path / stored / NFC).mkdir(parents=True)
    for k in range(6):
        (tmp_path / stored / NFC / f"{stored}{k}.png").write_bytes(png(k))
    rows = "".join(f"{listed}/{NFC}/{listed}{k}.png,{('ant', 'bee')[k % 2]}\n" for k in range(6))
    (tmp_path / "a.csv").write_text(f"file,label\n{rows}")
    assert len(scan(tmp_path / "a.csv", val_fraction=0.4).samples) == 6


# ------------------------------------------------------------------------------------------------ members of tar shards


def classes_by_name(manifest: Manifest) -> dict[str, str]:
    """Member of the tar -> class."""
    return {sample.path.partition(".tar/")[2]: sample.label for sample in manifest.samples}


def pairs(name: str = "{k}", label: str = ".cls") -> dict[str, bytes]:
    """Members of six images of ants and bees."""
    members: dict[str, bytes] = {}
    for k in range(6):
        stem, kind = name.format(k=k), ("ant", "bee")[k % 2]
        members[f"{stem}.png"] = png(k)
        members[f"{stem}{label}"] = kind.encode() if label.lower() == ".cls" else f'{{"label": "{kind}"}}'.encode()
    return members


@pytest.mark.parametrize("label", [".cls", ".json", ".CLS"])
def test_an_image_with_dots_in_its_name_has_the_class_beside_it(label: str, tmp_path: Path) -> None:
    members = pairs("place.{k}", label)
    reverse = dict(reversed(members.items()))
    for number, order in enumerate((members, reverse)):
        found = classes_by_name(scan(tar(tmp_path / f"{number}.tar", order), val_fraction=0.4))
        assert found == {f"place.{k}.png": ("ant", "bee")[k % 2] for k in range(6)}


def test_a_mask_that_lies_before_the_image_is_not_used(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for name, content in pairs().items():
        members |= {f"{name[0]}.mask.png": png(90), f"{name[0]}.mask.json": b'{"width": 8}', name: content}
    found = scan(tar(tmp_path / "a.tar", members), val_fraction=0.4)
    assert set(classes_by_name(found)) == {f"{k}.png" for k in range(6)}
    assert {s.path for s in found.skipped} == {f"a.tar/{k}.mask.png" for k in range(6)}


@pytest.mark.parametrize(
    ("sample", "fragments"),
    [
        ({"x.left.png": png(7), "x.right.png": png(8), "x.cls": b"ant"}, ("left.png, right.png", "--image_column")),
        ({"x.png": png(7), "x.jpg": png(8), "x.cls": b"ant"}, ("png, jpg", "--image_column")),
        ({"x.png": png(7), "x.a.cls": b"ant", "x.b.cls": b"bee"}, ("ant, bee", ".cls")),
        ({"x.png": png(7), "x.cls": b"caf\xe9"}, ("x.cls", "UTF-8")),
    ],
    ids=["two with dots", "two without", "two classes", "latin-1"],
)
def test_a_sample_that_can_be_read_in_two_ways_is_named(
    sample: dict[str, bytes], fragments: tuple[str, ...], tmp_path: Path
) -> None:
    message = refusal(tar(tmp_path / "a.tar", pairs() | sample))
    for fragment in ("a.tar, x: ", *fragments):
        assert fragment in message


def test_an_image_column_chooses_among_the_images_of_a_sample(tmp_path: Path) -> None:
    members = pairs("{k}.left") | {f"{k}.right.png": png(50 + k) for k in range(6)}
    members = {name.replace(".left.cls", ".cls"): content for name, content in members.items()}
    found = scan(tar(tmp_path / "a.tar", members), val_fraction=0.4, image_column="right.png")
    assert set(classes_by_name(found)) == {f"{k}.right.png" for k in range(6)}
    found = scan(tar(tmp_path / "b.tar", pairs("place.{k}")), val_fraction=0.4, image_column="png")
    assert len(found.samples) == 6


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_class(encoding: str, tmp_path: Path) -> None:
    for label in (".cls", ".json"):
        members = {
            name: content.decode().encode(encoding) if name.endswith(label) else content
            for name, content in pairs(label=label).items()
        }
        assert scan(tar(tmp_path / f"a{label}.tar", members), val_fraction=0.4).classes == ("ant", "bee")


def test_a_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    found = scan(tar(tmp_path / "a.tar", pairs() | {"x.png": png(9), "x.json": b"{"}), val_fraction=0.4)
    assert [s.path for s in found.skipped] == ["a.tar/x"]
    assert "x.json" in found.skipped[0].reason


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_in_a_tar_is_the_member_that_it_leads_to(kind: bytes, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"in/{name}": content for name, content in pairs().items()})
    with tarfile.open(path, "a") as archive:
        for name, target in (
            *((f"in/{k}x.{end}", f"{k}.{end}") for k in range(6) for end in ("png", "cls")),
            ("in/again.png", "0x.png"),
            ("in/again.cls", "0x.cls"),
            ("in/lost.png", "nowhere.png"),
            ("in/loop.png", "loop.png"),
            ("in/notes", "nowhere"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target if kind == tarfile.SYMTYPE else f"in/{target}"
            archive.addfile(link)
    found = scan(path, val_fraction=0.4)
    assert len(found.samples) == 13
    assert len(contents(found)) == 6
    assert all(found.source.read(sample.path) for sample in found.samples)
    reasons = {s.path: s.reason for s in found.skipped}
    assert reasons.keys() == {"a.tar/in/lost.png", "a.tar/in/loop.png"}
    assert "nowhere.png" in reasons["a.tar/in/lost.png"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_members_may_be_in_any_encoding(format: int, tmp_path: Path) -> None:
    for encoding, shown in (("utf-8", "Café"), ("latin-1", "Caf\\xe9")):
        path = tmp_path / f"{encoding}.tar"
        with tarfile.open(path, "w", format=format, encoding=encoding) as archive:
            for name, content in pairs("Café {k}").items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        expected = "Café" if format == tarfile.PAX_FORMAT else shown
        assert set(classes_by_name(scan(path, val_fraction=0.4))) == {f"{expected} {k}.png" for k in range(6)}


# ------------------------------------------------------------------------------------------------- behind a URL


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    with serving_files_of(tmp_path) as serving:
        yield serving


@pytest.mark.parametrize("way", [as_tar_shards, as_parquet_shards])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a client of the forked process is ended with it
def test_shards_behind_http_are_read_in_forked_workers(
    way: Callable[[Path, Path], str], server: FileServer, tiny_data: Path, tmp_path: Path
) -> None:
    way(tiny_data, tmp_path)
    pattern = "{train-{000..001},val-000}.tar" if way is as_tar_shards else "{train,val}-00000-of-00001.parquet"
    manifest = scan(f"{server.url}/{pattern}")
    assert manifest.sha256 == scan(tiny_data).sha256
    paths = manifest.samples.column("path")[::5]
    assert all("/" in path and not path.startswith("http") for path in paths)
    there = torch.utils.data.DataLoader(
        paths, batch_size=None, num_workers=2, collate_fn=manifest.source.read, multiprocessing_context="fork"
    )
    assert list(there) == [manifest.source.read(path) for path in paths]


def test_a_shard_that_the_server_lacks_is_named(server: FileServer) -> None:
    message = refusal(f"{server.url}/nowhere.tar")
    assert "nowhere.tar" in message
    assert "404" in message


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_server_without_ranges_is_refused_before_a_shard_is_downloaded(
    kind: str, server: FileServer, tmp_path: Path
) -> None:
    images = [png(k) + bytes(4_000_000) for k in range(6)]
    tar(tmp_path / "s.tar", pairs() | {f"{k}.png": images[k] for k in range(6)})
    parquet(tmp_path / "s.parquet", image=images)
    server.ranges = False
    message = refusal(f"{server.url}/s.{kind}?X-Amz-Signature=secret")
    assert f"s.{kind} " in message
    assert "Range" in message
    assert "secret" not in message
    assert server.bytes_sent < 10_000_000
    server.ranges, server.length = True, False
    assert "Content-Length" in refusal(f"{server.url}/s.{kind}")


def test_the_path_of_a_signed_address_names_the_kind(server: FileServer, tmp_path: Path) -> None:
    for split in ("train", "val"):
        tar(tmp_path / f"{split}-0.tar", pairs())
    query = "?X-Amz-Signature=a/b*{c}&name=x.parquet"
    found = scan(f"{server.url}/train-0.tar{query}", val_fraction=0.4, split="stratified")
    assert set(found.samples.column("path")) == {f"train-0.tar/{k}.png" for k in range(6)}
    assert len(scan(f"{server.url}/{{train,val}}-0.tar?X-Amz-Signature=a").samples) == 12


@pytest.mark.parametrize(("status", "fragment"), [(403, "expired"), (404, "no such file"), (503, "status 503")])
def test_what_a_server_answers_is_reported(status: int, fragment: str, server: FileServer, tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", pairs())
    server.refusing = status
    message = refusal(f"{server.url}/s.tar?X-Amz-Signature=secret")
    for part in ("/s.tar ", str(status), fragment):
        assert part in message
    assert "secret" not in message


def test_a_part_of_another_length_than_requested_is_no_image(server: FileServer, tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", pairs())
    found = scan(f"{server.url}/s.tar", val_fraction=0.4)
    server.ranges = False
    with pytest.raises(OSError, match="instead of"):
        found.source.read(found.samples[0].path)
