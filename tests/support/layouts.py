"""The same images as class folders hold them, laid out in every other way that data may come."""

import csv
import io
import json
import os
import random
import tarfile
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from support.images import CLASSES


def rows_of(root: Path) -> list[dict[str, str]]:
    """What lies in train/, val/ and test/ of class folders: path, label, split."""
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
    """Two shards for train, one for val and for test, in an order of their own."""
    rows = rows_of(root)
    random.Random(0).shuffle(rows)
    for split, shards in (("train", 2), ("val", 1), ("test", 1)):
        part = [row for row in rows if row["split"] == split]
        for number in range(shards if part else 0):
            with tarfile.open(out / f"{split}-{number:03d}.tar", "w") as archive:
                for place, row in enumerate(part[number::shards]):
                    for suffix, content in (
                        (Path(row["path"]).suffix, (root / row["path"]).read_bytes()),
                        (".cls", row["label"].encode()),
                    ):
                        info = tarfile.TarInfo(f"{number:02d}{place:05d}{suffix}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
    return str(out)


def as_parquet_shards(root: Path, out: Path) -> str:
    """As datasets writes them, five images a row group, classes as numbers."""
    for split in sorted({row["split"] for row in rows_of(root)}):
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
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = [row for row in rows_of(root) if row["split"] == split]
        if not rows:
            continue
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
