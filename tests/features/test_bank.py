"""The feature bank and what is computed into it: content keys, checksums, sharing, kills, the trunk's form."""

import errno
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.bank import CPU, SPEC, extract
from torchvision.models import resnet18
from torchvision.transforms import v2

from headstart.backbones import BACKBONES, RESNET18
from headstart.config import DataConfig, RuntimeConfig
from headstart.data.manifest import build_manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data.transforms import Preprocess
from headstart.errors import InputError, Stopped
from headstart.features.bank import MERGE_SHARDS, Bank, bank_key, row_name
from headstart.features.bank_keys import prune, stored
from headstart.features.extraction import BATCH_CPU, bank_transforms, fill, rows_of
from headstart.model.build import backbone_shapes, build_model
from headstart.model.forward import FrozenNetwork, bank_form
from headstart.model.weights import load_weights
from headstart.runtime.accelerator import start_accelerator
from headstart.runtime.signals import StopRequest

KEY = bank_key(weights_sha256="a", form="test", preprocess={"image_size": 32})


@pytest.fixture(scope="module")
def backbone() -> dict[str, torch.Tensor]:
    tensors = load_weights("bundled", RESNET18).tensors
    assert tensors is not None
    return tensors


class CountingNetwork(FrozenNetwork):
    """Counts its batches. Before the batch number `stop_at`, counted from 1, it sends SIGTERM to its own process, or
    `kills_parent`: SIGKILL to the process whose worker it runs in."""

    def __init__(
        self, backbone: dict[str, torch.Tensor], *, stop_at: int | None = None, kills_parent: bool = False
    ) -> None:
        super().__init__(backbone, RESNET18, precision="no", device=CPU)
        self.num_batches, self.stop_at, self.kills_parent = 0, stop_at, kills_parent

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.num_batches += 1
        if self.num_batches == self.stop_at:
            if self.kills_parent:
                os.kill(os.getppid(), signal.SIGKILL)
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(pixels)


# ---- the trunk


def test_the_shapes_are_torchvisions() -> None:
    expected = {
        name: tuple(value.shape) for name, value in resnet18().state_dict().items() if not name.startswith("fc.")
    }
    assert backbone_shapes(RESNET18) == expected


def test_the_evaluation_transform_has_the_bytes_of_torchvision(draw_image) -> None:
    rng = np.random.default_rng(0)
    reference = v2.Compose([v2.Resize(37, antialias=True), v2.CenterCrop(32), v2.PILToTensor()])
    images = [draw_image(0, 1), draw_image(1, 2).resize((37, 37)), draw_image(2, 3).rotate(90, expand=True)]
    images += [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((38, 41), (200, 37), (33, 500))
    ]
    for image in images:
        assert torch.equal(SPEC.resize_and_crop(image), reference(image)), image.size


def test_the_folded_trunk_gives_the_logits_of_the_network_in_fp32(backbone) -> None:
    model = build_model(RESNET18, 5, tensors=backbone, head_init="normal", seed=0).eval()
    pixels = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = FrozenNetwork(backbone, RESNET18, precision="no", device=CPU)(pixels)
    with torch.inference_mode():
        expected = model(pixels)
        ours = model.fc(features)
    assert features.shape == (16, RESNET18.features)
    assert features.dtype == torch.float32
    assert (ours - expected).abs().max() < 1e-5


def test_a_feature_does_not_depend_on_the_other_images_of_the_batch(backbone) -> None:
    pixels = torch.randn(BATCH_CPU, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for precision in ("no", "bf16"):
        trunk = FrozenNetwork(backbone, RESNET18, precision=precision, device=CPU)
        whole = trunk(pixels)
        alone = torch.zeros_like(pixels)
        alone[3] = pixels[7]
        assert torch.equal(trunk(alone)[3], whole[7])
        assert torch.equal(trunk(pixels.flip(0)).flip(0), whole)


def test_bf16_features_point_the_same_way(backbone) -> None:
    pixels = torch.randn(BATCH_CPU, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact, rounded = (FrozenNetwork(backbone, RESNET18, precision=p, device=CPU)(pixels) for p in ("no", "bf16"))
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.999


def test_each_form_of_the_trunk_has_its_name() -> None:
    forms = {bank_form(RESNET18, precision=precision, device=CPU) for precision in ("no", "bf16", "fp16")}
    forms.add(bank_form(RESNET18, precision="no", device=torch.device("cuda")))
    forms.add(bank_form(BACKBONES["lite0"], precision="no", device=CPU))
    assert len(forms) == 5


# ---- what is computed, and when


def test_a_second_run_computes_nothing(tiny_data, tmp_path, backbone) -> None:
    trunk = CountingNetwork(backbone)
    first, features, _ = extract(tiny_data, tmp_path, trunk)
    assert (first.wanted, first.computed) == (51, 51)
    assert trunk.num_batches == 4  # 51 images in batches of 16
    again, same, _ = extract(tiny_data, tmp_path, trunk)
    assert again.computed == 0
    assert trunk.num_batches == 4
    assert np.array_equal(features, same)


def test_moving_and_renaming_computes_nothing(image_folder, tmp_path, backbone) -> None:
    folder = image_folder(train=4, val=2)
    extract(folder, tmp_path / "bank", backbone)
    moved = folder.rename(tmp_path / "elsewhere")
    for path in sorted(moved.rglob("*.jpg")):
        path.rename(path.with_name(f"renamed_{path.name}"))
    assert extract(moved, tmp_path / "bank", backbone)[0].computed == 0


def test_ten_new_images_compute_ten_and_an_edited_one_computes_one(
    image_folder, draw_image, tmp_path, backbone
) -> None:
    folder = image_folder(train=4, val=2)
    extract(folder, tmp_path / "bank", backbone)
    for number in range(10):
        draw_image(0, 1000 + number).save(folder / "train" / "blue_waves" / f"new_{number}.png")
    assert extract(folder, tmp_path / "bank", backbone)[0].computed == 10
    draw_image(0, 2000).save(folder / "train" / "blue_waves" / "new_3.png")
    assert extract(folder, tmp_path / "bank", backbone)[0].computed == 1


@pytest.mark.slow
def test_another_size_crop_or_backbone_has_another_key(tiny_data, tmp_path, backbone) -> None:
    extract(tiny_data, tmp_path, backbone)
    for spec in (Preprocess(image_size=48, resize_size=55), Preprocess(image_size=32, resize_size=32)):
        assert extract(tiny_data, tmp_path, backbone, spec=spec)[0].computed == 51
    keys = {
        json.dumps(bank_key(weights_sha256=w, form=f, preprocess={})) for w, f in (("a", "x"), ("b", "x"), ("a", "y"))
    }
    assert len(keys) == 3
    assert len(stored(tmp_path)) == 3


@pytest.mark.slow
def test_augmented_copies_are_functions_of_seed_and_number(tiny_data, tmp_path, backbone) -> None:
    extraction, features, _ = extract(tiny_data, tmp_path / "a", backbone, augmented_copies=2)
    assert extraction.computed == 3 * 51
    per_image = features.reshape(51, 3, RESNET18.features)
    assert not np.array_equal(per_image[:, 1], per_image[:, 2])
    _, again, _ = extract(tiny_data, tmp_path / "b", backbone, augmented_copies=2)
    assert np.array_equal(features, again)
    more, _, _ = extract(tiny_data, tmp_path / "a", backbone, augmented_copies=3)
    assert more.computed == 51  # the first two copies are stored already


def test_workers_give_the_same_bits(tiny_data, tmp_path, backbone) -> None:
    _, one, _ = extract(tiny_data, tmp_path / "a", backbone)
    _, two, _ = extract(tiny_data, tmp_path / "b", backbone, num_workers=2)
    assert np.array_equal(one, two)


def test_a_file_that_changes_after_the_scan_is_named_and_not_stored(
    image_folder, draw_image, tmp_path, backbone
) -> None:
    folder = image_folder(train=4, val=2)
    manifest = build_manifest(ClassFolders(str(folder)), DataConfig(), seed=0)
    changed = folder / manifest.samples[5].path
    draw_image(1, 999).save(changed)
    bank = Bank(tmp_path / "bank", KEY, width=RESNET18.features)
    rows = rows_of(manifest.source, manifest.samples, bank_transforms(DataConfig(), SPEC, augmented_copies=0, seed=0))
    for num_workers in (0, 1):
        with StopRequest() as stop, pytest.raises(InputError, match="content changed") as caught:
            fill(
                start_accelerator(RuntimeConfig(mixed_precision="no", cpu=True)),
                bank,
                rows,
                SPEC,
                lambda: FrozenNetwork(backbone, RESNET18, precision="no", device=CPU),
                num_workers=num_workers,
                stop=stop,
            )
        assert str(changed) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_weights_that_give_no_numbers_are_named_with_the_image_and_nothing_is_stored(
    tiny_data, tmp_path, backbone
) -> None:
    broken = backbone | {"conv1.weight": torch.full_like(backbone["conv1.weight"], torch.nan)}
    with pytest.raises(InputError, match=r"\.(jpg|png)\b.*--model\.weights"):
        extract(tiny_data, tmp_path, broken)
    assert not list(tmp_path.glob("*/*.safetensors"))


# ---- the files


def fill_bank(location: Path, *, shards: int, rows: int = 3) -> tuple[list[bytes], np.ndarray]:
    rng = np.random.default_rng(0)
    names = [row_name(str(i), "eval") for i in range(shards * rows)]
    features = rng.random((len(names), 8), dtype=np.float32)
    writer = Bank(location, KEY, width=8).writer()
    for start in range(0, len(names), rows):
        writer.add(names[start : start + rows], features[start : start + rows])
    return names, features


def test_rows_come_back_in_any_order(tmp_path) -> None:
    names, features = fill_bank(tmp_path, shards=5)
    bank = Bank(tmp_path, KEY, width=8)
    assert len(bank) == 15
    order = np.random.default_rng(1).permutation(15)
    rows = bank.rows([names[i] for i in order])
    assert np.array_equal(rows[:], features[order])
    assert np.array_equal(rows[3:7], features[order[3:7]])
    assert np.array_equal(rows[order % 2 == 0], features[order][order % 2 == 0])


@pytest.mark.parametrize("harm", ["truncated", "cut in the header", "emptied", "one bit", "header", "grown"])
def test_a_harmed_shard_is_named_left_out_and_rebuilt(harm, tmp_path) -> None:
    names, features = fill_bank(tmp_path, shards=3)
    victim = sorted(Bank(tmp_path, KEY, width=8).path.glob("*.safetensors"))[1]
    content = bytearray(victim.read_bytes())
    match harm:
        case "truncated":
            content = content[:-5]
        case "cut in the header":
            content = content[:20]
        case "emptied":
            content = bytearray()
        case "one bit":
            content[-40] ^= 4
        case "header":
            content[12] ^= 255
        case "grown":
            content += b"x"
    victim.write_bytes(content)
    bank = Bank(tmp_path, KEY, width=8)
    assert [damaged.path for damaged in bank.damaged] == [victim]
    assert bank.damaged[0].reason
    assert len(bank) == 6
    missing = [i for i, name in enumerate(names) if name not in bank]
    bank.writer().add([names[i] for i in missing], features[missing])
    bank.refresh()
    bank.remove_damaged()
    again = Bank(tmp_path, KEY, width=8)
    assert not again.damaged
    assert np.array_equal(again.rows(names)[:], features)


def test_small_shards_are_merged_and_nothing_is_lost(tmp_path) -> None:
    names, features = fill_bank(tmp_path, shards=MERGE_SHARDS + 3)
    bank = Bank(tmp_path, KEY, width=8)
    assert len(list(bank.path.glob("*.safetensors"))) == 4
    assert np.array_equal(bank.rows(names)[:], features)


def test_writers_and_readers_at_the_same_time_see_whole_rows_only(tmp_path) -> None:
    rng = np.random.default_rng(0)
    names = [row_name(str(i), "eval") for i in range(600)]
    features = rng.random((600, 8), dtype=np.float32)
    failures: list[BaseException] = []

    def write(part: int) -> None:
        try:
            writer = Bank(tmp_path, KEY, width=8).writer()
            for start in range(part * 100, 600, 5):  # the parts overlap
                writer.add(names[start : start + 5], features[start : start + 5])
            writer.merge()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        bank = Bank(tmp_path, KEY, width=8)
        assert not bank.damaged
        present = [i for i, name in enumerate(names) if name in bank]
        assert np.array_equal(bank.rows([names[i] for i in present])[:], features[present])
    assert not failures
    assert np.array_equal(Bank(tmp_path, KEY, width=8).rows(names)[:], features)


def test_a_bank_that_cannot_be_made_asks_for_another_place(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"--runtime\.bank DIR"):
        Bank(tmp_path / "file", KEY, width=8)


def test_a_complete_bank_that_cannot_be_written_is_read(tmp_path, monkeypatch) -> None:
    names, features = fill_bank(tmp_path, shards=2)

    def read_only(path, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "utime", read_only)
    monkeypatch.setattr(os, "replace", read_only)
    bank = Bank(tmp_path, KEY, width=8)
    assert np.array_equal(bank.rows(names)[:], features)
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))}.*Read-only.*--runtime\.bank DIR"):
        bank.writer().add([row_name("new", "eval")], features[:1])


def test_a_bank_that_is_deleted_while_it_is_filled_is_named(tmp_path) -> None:
    fill_bank(tmp_path, shards=1)
    writer = Bank(tmp_path, KEY, width=8).writer()
    row = np.zeros((1, 8), np.float32)
    writer.add([row_name("a", "eval")], row)
    writer.add([row_name("b", "eval")], row)
    prune(tmp_path, name="all")
    named = re.escape(str(tmp_path)) + ".*deleted"
    with pytest.raises(InputError, match=named):
        writer.merge()
    with pytest.raises(InputError, match=named):
        writer.add([row_name("c", "eval")], row)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_is_not_stored(odd, tmp_path) -> None:
    bank = Bank(tmp_path, KEY, width=8)
    features = np.zeros((3, 8), np.float32)
    features[1, 4] = odd
    with pytest.raises(ValueError, match="nan"):
        bank.writer().add([row_name(str(i), "eval") for i in range(3)], features)
    assert not list(bank.path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"unused_days": -1.0}, r"--prune_unused is -1\.0"),
        ({"unused_days": float("nan")}, "--prune_unused is nan"),
        ({"unused_days": float("inf")}, "--prune_unused is inf"),
        ({"unused_days": 1.0, "name": "all"}, "--prune KEY .*--prune_unused DAYS"),
    ],
)
def test_a_choice_of_keys_that_makes_no_sense_deletes_nothing(choice, message, tmp_path) -> None:
    fill_bank(tmp_path, shards=1)
    with pytest.raises(InputError, match=message):
        prune(tmp_path, **choice)
    assert len(stored(tmp_path)) == 1


def test_keys_are_listed_and_pruned(tmp_path) -> None:
    fill_bank(tmp_path, shards=2)
    other = Bank(tmp_path, bank_key(weights_sha256="b", form="test", preprocess={}), width=8)
    os.utime(other.path, (0, 0))
    assert [entry.num_shards for entry in stored(tmp_path)] == [2, 0]
    with pytest.raises(InputError, match="zzz"):
        prune(tmp_path, name="zzz")
    assert [entry.path for entry in prune(tmp_path, unused_days=30)] == [other.path]
    assert len(prune(tmp_path, name="all")) == 1
    assert stored(tmp_path) == []


# ---- stopped and killed


def test_a_signal_keeps_every_batch_that_was_begun(tiny_data, tmp_path, backbone) -> None:
    assert threading.current_thread() is threading.main_thread(), "signals reach no other thread"
    trunk = CountingNetwork(backbone, stop_at=2)
    with pytest.raises(Stopped, match="SIGTERM") as caught:
        extract(tiny_data, tmp_path / "bank", trunk)
    assert str(tmp_path / "bank") in str(caught.value)
    assert trunk.num_batches == 2
    kept, features, _ = extract(tiny_data, tmp_path / "bank", backbone)
    assert kept.computed == 51 - 2 * BATCH_CPU
    _, expected, _ = extract(tiny_data, tmp_path / "fresh", backbone)
    assert np.array_equal(features, expected)


EXTRACTED = bank_key(weights_sha256="bundled", form="test", preprocess=SPEC.to_json())


def in_a_process(data: Path, bank: Path, trunk: dict[str, torch.Tensor] | FrozenNetwork, *, augmented_copies: int):
    """`extract` with two workers, in a process that starts at once because torch is imported already."""
    arguments = {"augmented_copies": augmented_copies, "num_workers": 2}
    process = multiprocessing.get_context("fork").Process(target=extract, args=(data, bank, trunk), kwargs=arguments)
    process.start()
    return process


@pytest.mark.slow
def test_a_killed_extraction_keeps_its_batches_and_continues_to_the_same_bits(tiny_data, tmp_path, backbone) -> None:
    num_stored = 0
    for stop_at in (6, 2):  # of 13 batches, then of those that are left
        trunk = CountingNetwork(backbone, stop_at=stop_at, kills_parent=True)
        process = in_a_process(tiny_data, tmp_path / "bank", trunk, augmented_copies=3)
        process.join(timeout=200)
        assert process.exitcode == -signal.SIGKILL
        bank = Bank(tmp_path / "bank", EXTRACTED, width=RESNET18.features)
        assert not bank.damaged
        # a worker is given its sixth batch when three of its batches, and so three of the other's, are stored
        assert max(num_stored, 5 * BATCH_CPU) <= len(bank) < 4 * 51
        num_stored = len(bank)
    rest, features, _ = extract(tiny_data, tmp_path / "bank", backbone, augmented_copies=3)
    assert rest.computed == 4 * 51 - num_stored
    _, expected, _ = extract(tiny_data, tmp_path / "fresh", backbone, augmented_copies=3)
    assert np.array_equal(features, expected)


@pytest.mark.extended
def test_an_extraction_killed_at_random_moments_ends_with_the_same_bits(tiny_data, tmp_path, backbone) -> None:
    _, expected, _ = extract(tiny_data, tmp_path / "fresh", backbone, augmented_copies=7)
    for pause in np.random.default_rng(0).uniform(0, 0.2, 12).tolist():
        before = len(Bank(tmp_path / "bank", EXTRACTED, width=RESNET18.features))
        process = in_a_process(tiny_data, tmp_path / "bank", backbone, augmented_copies=7)
        deadline = time.monotonic() + 100
        while process.is_alive() and len(Bank(tmp_path / "bank", EXTRACTED, width=RESNET18.features)) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()
        process.join()
        bank = Bank(tmp_path / "bank", EXTRACTED, width=RESNET18.features)
        assert not bank.damaged
        assert len(bank) > before or len(bank) == len(expected)
    _, features, _ = extract(tiny_data, tmp_path / "bank", backbone, augmented_copies=7)
    assert np.array_equal(features, expected)
