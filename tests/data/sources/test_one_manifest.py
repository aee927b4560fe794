"""The same images, with odd names, from every source: the same classes, and each image with the same split and class.

A source holds what it can: hidden files are in folders and archives alone, names of files are not in parquet shards."""

import codecs
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.file_server import serving_files_of
from support.hub import REPOSITORY_ID, serving
from support.images import draw

from headstart.config import DataConfig
from headstart.data.manifest import build_manifest
from headstart.data.sources.open import open_source

NFD = "NFD"
CLASSES = (
    "Café",
    "größer als 5",
    "#1",
    "100%20",
    "🐝",
    "[a-z]{1,2}*?",
    'it\'s "quoted"',
    "a, b; c",
    "-dash",
    "-1",
    "0",
    "1",
    "007",
    "nan",
    "None",
    "true",
    "v1.0.2",
    "x" * 200,
    "עברית",
    "test",
)
FILES = (
    "one image.png",
    "Thé.jpg",
    "#.png",
    "%41 100%.png",
    "🐝.png",
    "[1].png",
    "{a,b}.png",
    'it\'s "it".png',
    "a,b.png",
    "a;b.png",
    "-dash.png",
    "IMG.2026.11.JPG",
    "UPPER.PNG",
    "two..dots.png",
    "deep/er/nested.png",
    "עברית.png",
    "$HOME.png",
    "a+b=c&d~.jpeg",
    "n" * 200 + ".png",
    "0.png",
)
HIDDEN = (
    ".hidden.png",
    "._one image.png",
    "__MACOSX/one.png",
    "Thumbs.db",
    ".ipynb_checkpoints/one.png",
    "@eaDir/one.png",
)


class Odd(NamedTuple):
    """label: as the source writes it; file: relative to the folder of the class."""

    split: str
    label: str
    file: str
    content: bytes

    @property
    def path(self) -> str:
        return f"{self.split}/{self.label}/{self.file}"


def encoded(code: int, number: int, name: str) -> bytes:
    out = io.BytesIO()
    draw(code, number).resize((32, 24)).save(out, "PNG" if name.lower().endswith("png") else "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def images() -> list[Odd]:
    """Forty images and a copy of one; accents of validation images are decomposed, as macOS stores them."""
    found = []
    for code, label in enumerate(CLASSES):
        file = FILES[code]
        found.append(Odd("train", label, file, encoded(code, 1, file)))
        file = FILES[(code + 7) % len(FILES)]
        names = (unicodedata.normalize(NFD, name) for name in (label, file))
        found.append(Odd("val", *names, encoded(code, 2, file)))
    return [*found, found[0]._replace(file="again.png")]


EMPTY = Odd("train", "0", "empty.png", b"")


def as_folder(images: list[Odd], out: Path) -> str:
    for image in [*images, EMPTY]:
        (out / "photos" / image.path).parent.mkdir(parents=True, exist_ok=True)
        (out / "photos" / image.path).write_bytes(image.content)
    for hidden in HIDDEN:
        (out / "photos/train/0" / hidden).parent.mkdir(exist_ok=True)
        (out / "photos/train/0" / hidden).write_bytes(images[0].content)
    return str(out / "photos")


class Unflagged(zipfile.ZipInfo):
    """An entry as Info-ZIP writes it: the name in UTF-8, without the flag."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode(), self.flag_bits & ~0x800


def as_zip(images: list[Odd], out: Path, entry: type[zipfile.ZipInfo] = zipfile.ZipInfo) -> str:
    with zipfile.ZipFile(out / "photos.zip", "w") as archive:
        for image in [*images, EMPTY]:
            archive.writestr(entry(f"photos/{image.path}"), image.content)
        for hidden in HIDDEN:
            archive.writestr(entry(f"photos/train/0/{hidden}"), images[0].content)
    return str(out / "photos.zip")


def as_zip_without_the_flag(images: list[Odd], out: Path) -> str:
    return as_zip(images, out, Unflagged)


def rows_of(images: list[Odd], out: Path) -> list[dict[str, str]]:
    as_folder(images, out)
    return [{"path": f"photos/{i.path}", "label": i.label, "split": i.split} for i in [*images, EMPTY]]


def as_csv(images: list[Odd], out: Path) -> str:
    with (out / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(rows_of(images, out))
    return str(out / "list.csv")


def as_csv_of_the_other_form(images: list[Odd], out: Path) -> str:
    """The table has composed accents where the disk has decomposed ones."""
    name = as_csv(images, out)
    Path(name).write_text(unicodedata.normalize("NFC", Path(name).read_text(encoding="utf-8")), encoding="utf-8")
    return name


def as_jsonl(images: list[Odd], out: Path) -> str:
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows_of(images, out))]
    (out / "list.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    return str(out / "list.jsonl")


def as_listing_parquet(images: list[Odd], out: Path) -> str:
    pq.write_table(pa.Table.from_pylist(rows_of(images, out)), out / "list.parquet")
    return str(out / "list.parquet")


def as_tar(images: list[Odd], out: Path, label_of: Callable[[str], tuple[str, bytes]] | None = None) -> str:
    """Named like the files of the folder. label_of: label -> extension and content of the member with the class."""
    label_of = label_of or (lambda label: (".cls", codecs.BOM_UTF8 + f"{label}\n".encode()))
    for split in ("train", "val"):
        with tarfile.open(out / f"{split}-000.tar", "w") as archive:
            for image in [i for i in [*images, EMPTY] if i.split == split]:
                suffix, label = label_of(image.label)
                for name, content in (
                    (f"./{image.path}", image.content),
                    (f"./{os.path.splitext(image.path)[0]}{suffix}", label),
                    (f"./{split}/0/.hidden.png", images[0].content),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return str(out)


def as_tar_with_json(images: list[Odd], out: Path) -> str:
    return as_tar(images, out, lambda label: (".json", json.dumps({"width": 32, "label": label}).encode("utf-8-sig")))


def as_parquet_shards(images: list[Odd], out: Path, numbered: tuple[str, ...] = ("train",)) -> str:
    """numbered: the splits that have classes as numbers; the others have them as text."""
    for split in ("train", "val"):
        part = [image for image in [*images, EMPTY] if image.split == split]
        pictures = [{"bytes": image.content, "path": image.file} for image in part]
        names = list(dict.fromkeys(image.label for image in part))
        kind = datasets.ClassLabel(names=names) if split in numbered else datasets.Value("string")
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        labels = [names.index(image.label) if split in numbered else image.label for image in part]
        table = pa.table({"image": pictures, "label": labels})
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(table, out / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return str(out)


def as_saved_dataset(images: list[Odd], out: Path) -> str:
    parts = {}
    for split, name in (("train", "train"), ("val", "validation")):
        part = [image for image in [*images, EMPTY] if image.split == split]
        names = list(dict.fromkeys(image.label for image in part))
        kind = datasets.ClassLabel(names=names) if split == "train" else datasets.Value("string")
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        pictures = [{"bytes": image.content, "path": None} for image in part]
        rows = {"image": pictures, "label": [image.label for image in part]}
        parts[name] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(out / "saved")
    return str(out / "saved")


WAYS = [
    as_folder,
    as_zip,
    as_zip_without_the_flag,
    as_csv,
    as_csv_of_the_other_form,
    as_jsonl,
    as_listing_parquet,
    as_tar,
    as_tar_with_json,
    as_parquet_shards,
    as_saved_dataset,
]


def scanned(root: str) -> tuple[list[str], list[tuple[str, str, str]], int]:
    """Classes, (content, split, class) of each image, number of files that cannot be used."""
    data = DataConfig(root=root, on_bad_file="skip")
    found = build_manifest(open_source(data), data, seed=0, num_threads=1)
    triples = sorted((sample.sha256, sample.split, sample.label) for sample in found.samples)
    return list(found.classes), triples, len(found.skipped)


def expected(images: list[Odd]) -> tuple[list[str], list[tuple[str, str, str]], int]:
    names = {unicodedata.normalize(form, name): name for name in CLASSES for form in ("NFC", NFD)}
    triples = [(hashlib.sha256(i.content).hexdigest(), i.split, names[i.label]) for i in images]
    return sorted(CLASSES), sorted(triples), 1


@pytest.mark.parametrize("way", WAYS)
def test_every_source_gives_the_same_manifest(
    way: Callable[[list[Odd], Path], str], images: list[Odd], tmp_path: Path
) -> None:
    assert scanned(way(images, tmp_path)) == expected(images)


@pytest.mark.parametrize(("way", "kind"), [(as_tar, "tar"), (as_parquet_shards, "parquet")])
def test_the_same_manifest_behind_a_signed_url(
    way: Callable[[list[Odd], Path], str], kind: str, images: list[Odd], tmp_path: Path
) -> None:
    way(images, tmp_path)
    with serving_files_of(tmp_path) as server:
        names = sorted(path.name for path in tmp_path.glob(f"*.{kind}"))
        root = f"{server.url}/{{{','.join(names)}}}?X-Amz-Signature=0a1b"
        assert scanned(root) == expected(images)


@pytest.mark.slow
def test_the_same_manifest_from_the_hub(images: list[Odd], tmp_path: Path) -> None:
    """In a process of its own: the libraries read the environment when they are imported."""
    (tmp_path / "shards").mkdir()
    as_parquet_shards(images, tmp_path / "shards", numbered=())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    code = (
        f"import json, sys; sys.path[:0] = {sys.path!r}; import test_one_manifest; "
        f"print(json.dumps(test_one_manifest.scanned('hf://{REPOSITORY_ID}')))"
    )
    with serving(tmp_path / "shards") as hub:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"},
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    classes, triples, skipped = json.loads(done.stdout.splitlines()[-1])
    assert (classes, [tuple(triple) for triple in triples], skipped) == expected(images)
