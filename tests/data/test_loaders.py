"""Rows, augmented copies and batches: the order of the samples, one copy per seed, with any number of workers."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from PIL import Image

from headstart.backbones import RESNET18
from headstart.config import DataConfig
from headstart.data.loaders import Batch, TransformedImages, as_dataset, eval_loader, train_loader
from headstart.data.manifest import build_manifest
from headstart.data.samples import Samples
from headstart.data.sampling import epoch_order, keys_of
from headstart.data.sources.folders import ClassFolders
from headstart.data.transforms import Preprocess, train_transform
from headstart.errors import InputError

DATA = DataConfig(image_size=32)
SPEC = Preprocess.of(DATA, RESNET18)


def samples_of(root: Path, split: str = "train") -> tuple[Samples, tuple[str, ...]]:
    manifest = build_manifest(ClassFolders(str(root)), DataConfig(val_fraction=0.25), seed=0, num_threads=1)
    return manifest.of(split), manifest.classes


def train_batches(root: Path, *, num_workers: int = 0, start_step: int = 0, seed: int = 1) -> list[Batch]:
    samples, classes = samples_of(root)
    return list(
        train_loader(
            as_dataset(samples, classes),
            samples.source,
            train_transform(DATA, SPEC),
            batch_size=8,
            accumulation=2,
            num_steps=6,
            start_step=start_step,
            seed=seed,
            num_workers=num_workers,
        )
    )


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


# ------------------------------------------------------------------------------------------------- rows


def test_rows_are_the_samples_in_their_order(tiny_data: Path) -> None:
    samples, classes = samples_of(tiny_data)
    rows = as_dataset(samples[::-1], classes)
    assert list(rows["path"]) == [sample.path for sample in samples[::-1]]
    assert [rows.features["label"].int2str(row["label"]) for row in rows] == [s.label for s in samples[::-1]]


ODD_NAMES = [
    "[1].jpg",
    "[x]/[y].jpg",
    "a b.jpg",
    " a.jpg",
    "日本/語.png",
    "Ü é.jpg",
    "q?.jpg",
    "star*.jpg",
    "100%41.jpg",
    "#1.jpg",
    "a=b&c.jpg",
    "~.jpg",
    "deep/er/and/deeper/x.JPG",
    "train/x.jpg",
    "test-00000-of-00001.jpg",
    "metadata.jpg",
]


def test_rows_keep_odd_names_and_depths(
    image_folder: Callable[..., Path], draw_image: Callable[..., Image.Image]
) -> None:
    root = image_folder(train=1, val=1, classes=("train", "test_tube"))
    for number, name in enumerate(ODD_NAMES):
        path = root / "train/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_image(0, 100 + number).save(path, format="PNG")
    samples, classes = samples_of(root)
    rows = as_dataset(samples, classes)
    assert len(rows) == len(ODD_NAMES) + 2
    assert list(rows["path"]) == [sample.path for sample in samples]
    assert [classes[row["label"]] for row in rows] == [sample.label for sample in samples]


def test_a_metadata_file_in_the_folder_changes_no_row(image_folder: Callable[..., Path]) -> None:
    root = image_folder(train=3, val=2)
    before = as_dataset(*samples_of(root)).to_list()
    for folder in (root, root / "train", root / "train/red_checks"):
        (folder / "metadata.csv").write_text("file_name,label\nred_checks_00.jpg,7\n")
    assert as_dataset(*samples_of(root)).to_list() == before


def test_labels_follow_the_order_of_the_classes(tiny_data: Path) -> None:
    samples, classes = samples_of(tiny_data)
    rows = as_dataset(samples, classes[::-1])
    assert rows.features["label"].names == list(classes[::-1])
    assert [classes[::-1][code] for code in rows["label"]] == [sample.label for sample in samples]


def test_the_dataset_is_the_table_of_the_manifest_without_a_copy(tiny_data: Path) -> None:
    manifest = build_manifest(ClassFolders(str(tiny_data)), DataConfig(val_fraction=0.25), seed=0, num_threads=1)
    samples = manifest.of("val")
    rows = as_dataset(samples, manifest.classes)
    for name in ("id", "path", "sha256"):
        own, read = manifest.samples.table.column(name), rows.data.column(name)
        assert read.num_chunks == 1
        assert addresses(read.chunk(0)) == addresses(own.chunk(0))
        assert read.to_pylist() == [getattr(sample, name) for sample in samples]
    copied = datasets.Dataset.from_dict({"id": [sample.id for sample in samples]})
    assert addresses(copied.data.column("id").chunk(0)) != addresses(manifest.samples.table.column("id").chunk(0))


def addresses(column: pa.Array) -> list[int]:
    return [buffer.address for buffer in column.buffers() if buffer is not None]


def test_a_relative_root_is_resolved_once(tiny_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tiny_data.parent)
    samples, _ = samples_of(Path(tiny_data.name))
    monkeypatch.chdir(tmp_path)
    assert samples.source.read(samples[0].path) == (tiny_data / samples[0].path).read_bytes()


def test_no_cache_is_left_behind(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = Path(datasets.config.HF_DATASETS_CACHE)
    before = sorted(home.rglob("*")) if home.exists() else []
    rows = as_dataset(*samples_of(tiny_data))
    assert len(rows) == 36
    assert rows.cache_files == []
    assert list(tmp_path.iterdir()) == []
    assert (sorted(home.rglob("*")) if home.exists() else []) == before


# ------------------------------------------------------------------------------------------------- views


def transformed_images(root: Path, *, seed: int = 0) -> tuple[TransformedImages, Samples]:
    samples, classes = samples_of(root)
    rows = as_dataset(samples, classes)
    return TransformedImages(rows, samples.source, train_transform(DATA, SPEC), seed=seed), samples


def test_an_augmented_copy_is_a_function_of_seed_epoch_and_sample(tiny_data: Path) -> None:
    images, _ = transformed_images(tiny_data)
    torch.manual_seed(1)
    first = images[(3, 5)]
    torch.manual_seed(2)
    images[(7, 5)]
    again = images[(3, 5)]
    assert torch.equal(first["pixels"], again["pixels"])
    assert (again["index"], again["pixels"].shape, again["pixels"].dtype) == (3, (3, 32, 32), torch.uint8)


def test_augmented_copies_differ_between_epochs_and_seeds(tiny_data: Path) -> None:
    images, _ = transformed_images(tiny_data)
    others, _ = transformed_images(tiny_data, seed=1)
    pictures = {bytes(v[(3, epoch)]["pixels"].numpy()) for v in (images, others) for epoch in range(6)}
    assert len(pictures) == 12


def test_an_augmented_copy_does_not_depend_on_the_other_files(image_folder: Callable[..., Path]) -> None:
    root = image_folder(train=4, val=2)
    images, samples = transformed_images(root)
    before = {sample.id: images[(i, 2)]["pixels"] for i, sample in enumerate(samples)}
    (root / "train/blue_waves/blue_waves_00.jpg").unlink()
    images, samples = transformed_images(root)
    assert len(samples) == 11
    for i, sample in enumerate(samples):
        assert torch.equal(images[(i, 2)]["pixels"], before[sample.id])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_vanished_after_the_scan_is_named_in_one_line(
    num_workers: int, image_folder: Callable[..., Path]
) -> None:
    root = image_folder(train=4, val=2)
    samples, classes = samples_of(root)
    rows = as_dataset(samples, classes)
    (root / samples[0].path).unlink()
    loader = eval_loader(rows, samples.source, SPEC.eval_transform(), batch_size=4, num_workers=num_workers)
    with pytest.raises(InputError) as caught:
        list(loader)
    message = str(caught.value)
    assert str(root / samples[0].path) in message
    assert "\n" not in message
    if num_workers:
        loader._iterator._shutdown_workers()  # at once; left to the garbage collector it takes ten seconds


def test_a_file_that_was_damaged_after_the_scan_is_named(image_folder: Callable[..., Path]) -> None:
    root = image_folder(train=4, val=2)
    images, samples = transformed_images(root)
    (root / samples[2].path).write_bytes(b"")
    with pytest.raises(InputError, match=r"blue_waves_02.*empty"):
        images[(2, 0)]


# ------------------------------------------------------------------------------------------------- batches


def test_the_number_of_workers_changes_no_batch(tiny_data: Path) -> None:
    assert equal(train_batches(tiny_data, num_workers=0), train_batches(tiny_data, num_workers=2))


@pytest.mark.parametrize(("asked", "started"), [(0, 0), (2, 2), (4000, 2)])
def test_there_are_no_more_workers_than_batches(asked: int, started: int, tiny_data: Path) -> None:
    samples, classes = samples_of(tiny_data, "val")
    rows, size = as_dataset(samples, classes), -(-len(samples) // 2)
    loader = eval_loader(rows, samples.source, SPEC.eval_transform(), batch_size=size, num_workers=asked)
    assert (len(loader), loader.num_workers) == (2, started)


def test_batches_after_a_restart_are_those_that_were_left(tiny_data: Path) -> None:
    assert equal(train_batches(tiny_data, start_step=4), train_batches(tiny_data)[8:])


def test_another_seed_gives_other_batches(tiny_data: Path) -> None:
    assert not equal(train_batches(tiny_data, seed=1), train_batches(tiny_data, seed=2))


def test_a_batch_has_the_rows_of_the_epoch_order(tiny_data: Path) -> None:
    samples, classes = samples_of(tiny_data)
    order = epoch_order(keys_of([sample.id for sample in samples]), seed=1, epoch=0)
    batch = train_batches(tiny_data)[0]
    assert batch["index"].tolist() == order[:4].tolist()
    assert [classes[code] for code in batch["label"]] == [samples[i].label for i in order[:4]]
    assert (batch["pixels"].dtype, batch["pixels"].shape) == (torch.uint8, (4, 3, 32, 32))
    assert (batch["label"].dtype, batch["index"].dtype) == (torch.int64, torch.int64)


def test_evaluation_sees_every_row_once_with_the_evaluation_transform(tiny_data: Path) -> None:
    samples, classes = samples_of(tiny_data, "val")
    rows = as_dataset(samples, classes)
    batches = list(eval_loader(rows, samples.source, SPEC.eval_transform(), batch_size=4, num_workers=0))
    assert [len(batch["label"]) for batch in batches] == [4, 4, 4, 3]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(15))
    for picture, sample in zip(torch.cat([batch["pixels"] for batch in batches]), samples, strict=True):
        with Image.open(tiny_data / sample.path) as image:
            assert torch.equal(picture, SPEC.resize_and_crop(image.convert("RGB")))
