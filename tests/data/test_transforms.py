"""From an RGB image to the network's tensor, against Pillow and torchvision."""

import copy
import dataclasses
import io
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import headstart.data.pixel_cache as pixels_module
from headstart.backbones import RESNET18
from headstart.config import DataConfig
from headstart.data.decode import UnreadableImage
from headstart.data.pixel_cache import CacheLimit
from headstart.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocess, train_short_side, train_transform
from headstart.errors import InputError

DATA = DataConfig(image_size=32)
SPEC = Preprocess.of(DATA, RESNET18)
SIZES = [(64, 48), (48, 64), (37, 53), (37, 37), (200, 37), (37, 199), (20, 30), (333, 61)]


def picture(width: int = 64, height: int = 48) -> Image.Image:
    rng = np.random.default_rng([width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_short_side_is_chosen_as_imagenet_does() -> None:
    assert Preprocess.of(DataConfig(), RESNET18).resize_size == 256
    assert Preprocess.of(DataConfig(image_size=32), RESNET18).resize_size == 37
    assert Preprocess.of(DataConfig(image_size=224, resize_size=224), RESNET18).resize_size == 224


@pytest.mark.parametrize("size", SIZES)
def test_the_evaluation_transform_equals_its_steps_in_pillow(size: tuple[int, int]) -> None:
    image = picture(*size)
    width, height = size
    if width < height:
        width, height = 37, int(37 * height / width)
    else:
        width, height = int(37 * width / height), 37
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    expected = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    transform = SPEC.resize_and_crop(image)
    assert transform.dtype == torch.uint8
    assert np.array_equal(transform.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize("size", SIZES)
def test_transform_and_normalisation_equal_torchvisions_pipeline(size: tuple[int, int]) -> None:
    reference = transforms.Compose(
        [
            transforms.Resize(37),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    image = picture(*size)
    assert torch.equal(SPEC.normalize(SPEC.resize_and_crop(image)[None])[0], reference(image))


def test_the_evaluation_transform_does_not_depend_on_the_seed() -> None:
    assert torch.equal(SPEC.eval_transform()(picture(), 1), SPEC.eval_transform()(picture(), 2))


def test_normalisation_keeps_its_input_and_the_memory_layout() -> None:
    pixels = torch.stack([SPEC.resize_and_crop(picture()), SPEC.resize_and_crop(picture(48, 64))])
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    before = pixels.clone()
    result = SPEC.normalize(pixels)
    assert torch.equal(pixels, before)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_the_specification_survives_json() -> None:
    spec = Preprocess(64, 80, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert Preprocess.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_specification_names_every_setting() -> None:
    assert Preprocess.of(DataConfig(), RESNET18).to_json() == {
        "image_size": 224,
        "resize_size": 256,
        "interpolation": "bilinear",
        "antialias": True,
        "crop": "center",
        "decoder": "pillow-rgb-v1",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interpolation", "lanczos"),
        ("antialias", False),
        ("crop", "five"),
        ("decoder", "pillow-rgb-v2"),
        ("colour_space", "lab"),
        ("resize_size", None),
    ],
)
def test_a_specification_that_cannot_be_followed_exactly_is_refused(key: str, value: Any) -> None:
    values = SPEC.to_json() | {key: value}
    if value is None:
        del values[key]
    with pytest.raises(InputError, match=key):
        Preprocess.from_json(values)


AUGMENTED = [
    DataConfig(image_size=32),
    DataConfig(image_size=32, vflip=True),
    DataConfig(image_size=32, min_crop_scale=1.0, hflip=True),
]


@pytest.mark.parametrize("data", AUGMENTED)
def test_a_training_transform_is_a_function_of_its_seed(data: DataConfig) -> None:
    transform = train_transform(data, SPEC)
    for seed in (0, 1, 2**63 - 1):
        torch.manual_seed(seed % 97)
        first = transform(picture(), seed)
        torch.manual_seed(5)
        assert torch.equal(train_transform(data, SPEC)(picture(), seed), first)
        assert (first.shape, first.dtype) == ((3, 32, 32), torch.uint8)


def test_training_transforms_of_other_seeds_differ() -> None:
    transform = train_transform(DATA, SPEC)
    assert len({bytes(transform(picture(), seed).numpy()) for seed in range(40)}) == 40


def test_a_training_transform_does_not_change_global_random_states() -> None:
    def states() -> tuple[Any, ...]:
        return bytes(torch.get_rng_state().numpy()), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    train_transform(DATA, SPEC)(picture(), 7)
    assert states() == before


def test_the_random_state_is_restored_after_an_error_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(TypeError):
        train_transform(DATA, SPEC).vary(torch.zeros(3), 7)  # type: ignore[misc]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", SIZES)
def test_without_augmentation_training_uses_the_evaluation_transform(size: tuple[int, int]) -> None:
    transform = train_transform(dataclasses.replace(DATA, min_crop_scale=1.0, hflip=False), SPEC)
    for seed in range(3):
        assert torch.equal(transform(picture(*size), seed), SPEC.resize_and_crop(picture(*size)))


@pytest.mark.parametrize(("flip", "axis"), [("hflip", 2), ("vflip", 1)])
def test_half_of_the_views_are_mirrored(flip: str, axis: int) -> None:
    plain = {"hflip": False, "vflip": False}
    transform = train_transform(dataclasses.replace(DATA, min_crop_scale=1.0, **(plain | {flip: True})), SPEC)
    upright = SPEC.resize_and_crop(picture())
    mirrored = [torch.equal(transform(picture(), seed), upright.flip(axis)) for seed in range(200)]
    same = [torch.equal(transform(picture(), seed), upright) for seed in range(200)]
    assert [a != b for a, b in zip(mirrored, same, strict=True)] == [True] * 200
    assert 70 < sum(mirrored) < 130


def test_a_crop_is_never_smaller_than_asked(draw_image: Callable[..., Image.Image]) -> None:
    # a picture of its own coordinates tells what part of it a view shows
    y, x = np.mgrid[0:64, 0:64]
    image = Image.fromarray(np.stack([4 * x, 4 * y, 0 * x], axis=-1).astype(np.uint8))
    transform = train_transform(dataclasses.replace(DATA, min_crop_scale=0.5, hflip=False), SPEC)
    for seed in range(50):
        pixels = transform(image, seed).float()
        wide = (pixels[0].max() - pixels[0].min()) / 4 + 3
        high = (pixels[1].max() - pixels[1].min()) / 4 + 3
        assert wide * high >= 0.5 * 64 * 64


@pytest.mark.parametrize(
    ("size", "reduced"),
    [((400, 300), (99, 74)), ((300, 3000), (74, 740)), ((74, 90), (74, 90)), ((20, 900), (20, 900))],
)
def test_a_crop_is_cut_from_an_image_of_a_bounded_short_side(size: tuple[int, int], reduced: tuple[int, int]) -> None:
    """So a photograph of 12 megapixels takes no more memory than a small one."""
    assert train_short_side(DATA, SPEC) == 74 == 2 * SPEC.resize_size
    assert train_transform(DATA, SPEC).prepare(picture(*size)).shape == (3, *reversed(reduced))


@pytest.mark.parametrize("room", [0, 3 * 99 * 74, 10**6])
def test_the_result_does_not_depend_on_the_memory_that_is_free(room: int) -> None:
    photos = {"a": photograph(400, 300), "b": photograph(300, 500)}
    transform, uncached = train_transform(DATA, SPEC, cache_limit=CacheLimit(room)), train_transform(DATA, SPEC)
    for name, photo in photos.items():
        for seed in range(4):
            kept = transform.of(name, seed, lambda photo=photo: transform.decode(photo))  # type: ignore[misc]
            assert torch.equal(kept, uncached(uncached.decode(photo), seed))


def test_crops_of_a_reduced_photograph_look_like_those_of_the_whole() -> None:
    colours = [Image.linear_gradient("L").rotate(angle) for angle in (0, 90, 180)]
    photo = Image.merge("RGB", colours).resize((1110, 1110))
    blocks = np.asarray(photo).astype(float).reshape(74, 15, 74, 15, 3).mean(axis=(1, 3))
    reduced = train_transform(DATA, SPEC).prepare(photo).permute(1, 2, 0).numpy()
    assert np.abs(blocks - reduced).mean() < 1


def test_the_model_file_records_the_short_side_of_training_and_predicts_as_before() -> None:
    spec = dataclasses.replace(SPEC, train_short_side=74)
    assert Preprocess.from_json(spec.to_json()).train_short_side == 74
    assert torch.equal(spec.resize_and_crop(picture(400, 300)), SPEC.resize_and_crop(picture(400, 300)))
    assert "train_short_side" not in SPEC.to_json()  # files of before


# ------------------------------------------------------------------------------------------------- kept in memory


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_what_is_kept_is_not_loaded_again_and_gives_the_same_view(scale: float, on_disk: bool) -> None:
    data = dataclasses.replace(DATA, min_crop_scale=scale)
    transform, loaded = train_transform(data, SPEC, cache_limit=CacheLimit(10**6, on_disk)), []

    def load() -> Image.Image:
        loaded.append(1)
        return picture()

    found = [transform.of("sha", seed, load) for seed in range(8)]
    assert len(loaded) == 1
    for seed, pixels in enumerate(found):
        assert torch.equal(pixels, train_transform(data, SPEC)(picture(), seed))


def test_no_more_is_kept_than_there_is_room_for() -> None:
    size = 3 * 32 * 32
    transform = SPEC.eval_transform(cache_limit=CacheLimit(2 * size + 1))
    for name in "abc":
        transform.keep(name, picture())
    loaded: list[str] = []
    for name in "abc":
        transform.of(name, 0, lambda name=name: loaded.append(name) or picture())  # type: ignore[misc, func-returns-value]
    assert loaded == ["c"]


def test_a_worker_that_gets_a_copy_begins_with_nothing_and_the_same_room() -> None:
    transform = SPEC.eval_transform(cache_limit=CacheLimit(3 * 32 * 32))
    transform.keep("a", picture())
    other = copy.deepcopy(transform)  # by __reduce__, as a pickle
    loaded: list[int] = []
    for _ in range(2):
        other.of("a", 0, lambda: loaded.append(1) or picture())  # type: ignore[func-returns-value]
    assert loaded == [1]


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_a_forked_process_keeps_all_of_them_have(on_disk: bool) -> None:
    transform = SPEC.eval_transform(cache_limit=CacheLimit(10**6, on_disk))
    transform.keep("before", picture())
    transform.expect(["a", "b"])
    child = get_context("fork").Process(target=lambda: transform.keep("a", picture()))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert torch.equal(transform.of("a", 0, lambda: pytest.fail("decoded again")), SPEC.resize_and_crop(picture()))  # type: ignore[arg-type]
    assert torch.equal(transform.of("before", 0, lambda: pytest.fail("decoded again")), SPEC.resize_and_crop(picture()))  # type: ignore[arg-type]


def test_a_process_that_died_with_the_lock_in_its_hand_costs_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels_module, "LOCK_S", 0.01)
    kept = pixels_module.SharedPixels(CacheLimit(10**6))
    kept._lock.acquire()
    kept.put("a", SPEC.resize_and_crop(picture()))
    assert kept.get("a") is None


def test_threads_that_keep_images_at_once_each_have_their_own_place() -> None:
    class Slow(dict[str, int]):
        def __len__(self) -> int:
            length = super().__len__()
            time.sleep(0.002)  # others run meanwhile
            return length

    kept = pixels_module.SharedPixels(CacheLimit(10**6))
    kept._slots = Slow()
    images = {str(k): torch.full((3, 4, 4), k, dtype=torch.uint8) for k in range(16)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: kept.put(name, images[name]), images))
    assert all(torch.equal(kept.get(name), image) for name, image in images.items())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- large JPEG files


def photograph(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width // 8, height // 8), 90).resize((width, height)).convert("RGB").save(
        file, "JPEG", quality=92
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((800, 600), (400, 300)), ((600, 1800), (300, 900)), ((299, 4000), (299, 4000)), ((2400, 2500), (300, 313))],
)
def test_a_large_jpeg_is_decoded_smaller_but_not_below_the_given_size(
    size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    spec = dataclasses.replace(SPEC, jpeg_min_side=300)
    assert spec.decode(photograph(*size)).size == decoded
    assert SPEC.decode(photograph(*size)).size == size


def test_a_jpeg_decoded_smaller_gives_nearly_the_same_pixels() -> None:
    data = DataConfig(image_size=64, jpeg="scaled")
    exact, scaled = Preprocess.of(DataConfig(image_size=64), RESNET18), Preprocess.of(data, RESNET18)
    assert scaled.jpeg_min_side == 2 * 73 / 0.5
    photo = photograph(1400, 1200)
    difference = scaled.resize_and_crop(scaled.decode(photo)).int() - exact.resize_and_crop(exact.decode(photo)).int()
    assert scaled.decode(photo).size == (350, 300) or scaled.decode(photo).size == (700, 600)
    assert difference.abs().float().mean() < 2
    assert difference.abs().max() < 24


def test_other_formats_and_broken_files_do_not_change() -> None:
    spec = dataclasses.replace(SPEC, jpeg_min_side=32)
    file = io.BytesIO()
    Image.new("RGB", (400, 400)).save(file, "PNG")
    assert spec.decode(file.getvalue()).size == (400, 400)
    with pytest.raises(UnreadableImage):
        spec.decode(photograph(800, 800)[:2000])


def test_the_model_file_records_how_jpeg_files_are_decoded() -> None:
    spec = Preprocess.of(DataConfig(jpeg="scaled"), RESNET18)
    assert spec.to_json()["jpeg_min_side"] == 1024
    assert Preprocess.from_json(spec.to_json()) == spec
    assert "jpeg_min_side" not in Preprocess.of(DataConfig(), RESNET18).to_json()
