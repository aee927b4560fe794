"""Classes that a flip makes equal are found, and no others."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps
from support.images import draw
from support.planting import scene
from support.runs import small

from headstart.cli.main import main
from headstart.config import DataConfig, StrategyConfig
from headstart.data.manifest import build_manifest
from headstart.data.sources.folders import ClassFolders
from headstart.data_doctor.mirrored_classes import find_mirrored_classes, mirrored_pairs, thumbnail
from headstart.data_doctor.quick_check import warn_of_mirrored_classes
from headstart.training.run import run

COUNT = 32  # images of a class


def arrow(number: int, *, left: bool, colours: tuple[int, int] = (0, 90)) -> Image.Image:
    """A dark arrow of random colour and place on noise."""
    random = np.random.default_rng([number, left])
    image = Image.fromarray(random.integers(120, 256, (64, 64, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    x, y = 8 + int(random.integers(0, 8)), 20 + int(random.integers(0, 24))
    colour = tuple(int(value) for value in random.integers(*colours, 3))
    pen.rectangle((x, y - 4, x + 30, y + 4), fill=colour)
    pen.polygon([(x + 30, y - 12), (x + 46, y), (x + 30, y + 12)], fill=colour)
    return ImageOps.mirror(image) if left else image


def letter(text: str, number: int) -> Image.Image:
    random = np.random.default_rng([number, ord(text)])
    image = Image.new("RGB", (64, 64), (int(random.integers(180, 256)),) * 3)
    font = ImageFont.load_default(size=int(random.integers(38, 54)))
    place = tuple(32 + int(offset) for offset in random.integers(-6, 7, 2))
    ImageDraw.Draw(image).text(place, text, font=font, fill=(int(random.integers(0, 90)),) * 3, anchor="mm")
    return noisy(image.rotate(float(random.uniform(-8, 8)), fillcolor=(220, 220, 220)), random)


def hand(number: int, *, left: bool) -> Image.Image:
    random = np.random.default_rng([number, left, 7])
    image = Image.new("RGB", (96, 96), tuple(int(value) for value in random.integers(150, 256, 3)))
    pen, skin = ImageDraw.Draw(image), tuple(int(value) for value in np.array([200, 150, 120]) * random.uniform(0.5, 1))
    x, y = 48 + int(random.integers(-8, 9)), 60 + int(random.integers(-6, 7))
    pen.ellipse((x - 18, y - 18, x + 18, y + 20), fill=skin)
    for offset, length in ((-14, 26), (-5, 32), (5, 30), (14, 22)):
        pen.rounded_rectangle((x + offset - 4, y - 12 - length, x + offset + 4, y - 5), 4, fill=skin)
    pen.line((x - 12, y + 8, x - 34, y - 8), fill=skin, width=9)  # the thumb
    image = noisy(image.rotate(float(random.uniform(-15, 15))), random)
    return ImageOps.mirror(image) if left else image


def view(photo: Image.Image, number: int, *, left: bool = False) -> Image.Image:
    """A crop of a photograph in another light."""
    random = np.random.default_rng([number, left, 3])
    width, height = (int(side * random.uniform(0.65, 0.95)) for side in photo.size)
    x, y = int(random.integers(0, photo.width - width + 1)), int(random.integers(0, photo.height - height + 1))
    image = noisy(photo.crop((x, y, x + width, y + height)).resize((96, 96)), random)
    return ImageOps.mirror(image) if left else image


def noisy(image: Image.Image, random: np.random.Generator) -> Image.Image:
    values = np.asarray(image) * random.uniform(0.8, 1.1, 3) + random.normal(0, 8, np.asarray(image).shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def found(**classes: list[Image.Image]) -> list[tuple[str, str, str]]:
    images = {
        name: np.array([thumbnail(image.convert("RGB")) for image in ours]).reshape(-1, 64, 64, 3)
        for name, ours in classes.items()
    }
    return [(pair.first, pair.second, pair.axis) for pair in mirrored_pairs(images)]


def every(make, *arguments: object, **options: object) -> list[Image.Image]:
    return [make(*arguments, number=number, **options) for number in range(COUNT)]


@pytest.mark.slow
def test_arrows_letters_and_hands_that_a_flip_makes_equal_are_found() -> None:
    assert found(left=every(arrow, left=True), right=every(arrow, left=False)) == [("left", "right", "hflip")]
    assert found(left=every(hand, left=True), right=every(hand, left=False)) == [("left", "right", "hflip")]
    assert ("b", "d", "hflip") in found(**{name: every(letter, name) for name in "bdox"})
    assert found(p=every(letter, "p"), q=every(letter, "q")) == [("p", "q", "hflip")]
    upside_down = [ImageOps.flip(image) for image in every(letter, "p")]
    assert found(b=upside_down, p=every(letter, "q")) == []
    assert found(b=upside_down, p=[letter("p", number + COUNT) for number in range(COUNT)]) == [("b", "p", "vflip")]


def test_ten_images_of_each_class_suffice() -> None:
    few = {"left": every(arrow, left=True)[:10], "right": every(arrow, left=False)[:10]}
    assert found(**few) == [("left", "right", "hflip")]


@pytest.mark.slow
def test_photographs_of_mirrored_objects_are_found_and_of_two_objects_are_not(ants_and_bees: Path) -> None:
    photos = [Image.open(path).convert("RGB") for path in sorted((ants_and_bees / "train/ants").glob("*.jpg"))[3:6]]
    for photo in photos:
        left, right = every(view, photo, left=True), every(view, photo)
        assert found(left=left, right=right) == [("left", "right", "hflip")]
    assert found(**{str(place): every(view, photo) for place, photo in enumerate(photos)}) == []


@pytest.mark.slow
def test_ants_and_bees_are_not_mirror_images(ants_and_bees: Path) -> None:
    source = ClassFolders(str(ants_and_bees / "train"))
    paths: dict[str, list[str]] = {}
    for entry in source.scan().entries:
        paths.setdefault(entry.label, []).append(entry.path)
    assert find_mirrored_classes(source, paths) == []


@pytest.mark.slow
def test_other_classes_are_not_found() -> None:
    assert found(o=every(letter, "o"), x=every(letter, "x")) == []  # symmetrical
    assert found(c=every(letter, "C"), g=every(letter, "G"), l=every(letter, "L"), j=every(letter, "J")) == []
    assert found(left=every(hand, left=True), o=every(letter, "o")) == []  # one direction only
    assert found(**{str(code): [draw(code, number) for number in range(COUNT)] for code in range(3)}) == []
    assert found(**{str(code): [scene(code, number) for number in range(COUNT)] for code in range(3)}) == []
    one = every(arrow, left=True) + [arrow(number, left=False) for number in range(COUNT)]
    assert found(a=one[::2], b=one[1::2]) == []  # at random
    assert found(a=[], b=every(hand, left=True)) == []


def test_classes_that_differ_in_colour_as_well_are_not_found() -> None:
    """A model can still tell them apart after a flip."""
    red, blue = (
        [Image.merge("RGB", [image.getchannel(channel) for channel in order]) for image in images]
        for order, images in ((("G", "R", "R"), every(arrow, left=True)), (("R", "R", "G"), every(arrow, left=False)))
    )
    tinted = [
        [Image.blend(image, Image.new("RGB", image.size, colour), 0.4) for image in images]
        for images, colour in ((red, "red"), (blue, "blue"))
    ]
    assert found(left=tinted[0], right=tinted[1]) == []


@pytest.mark.slow
def test_a_pair_among_many_classes_is_decided_by_more_images(tmp_path: Path) -> None:
    for name in "abcdefghpq":
        (tmp_path / name).mkdir()
        for number in range(96 if name in "bd" else 12):
            letter(name, number).save(tmp_path / name / f"{number:03d}.png")
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("*/*"))
    paths = {name: [path.as_posix() for path in files if path.parts[0] == name] for name in "abcdefghpq"}
    pairs = find_mirrored_classes(ClassFolders(str(tmp_path)), paths, axes=["hflip"])
    assert [(pair.first, pair.second) for pair in pairs][:1] == [("b", "d")]


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("turns") / "data"
    for name in ("turn_left", "turn_right"):
        (root / name).mkdir(parents=True)
        for number in range(24):
            arrow(number, left=name == "turn_left").save(root / name / f"{number:03d}.png")
    return root


@pytest.mark.parametrize(
    ("flips", "warned"), [({}, True), ({"hflip": False}, False), ({"hflip": False, "vflip": True}, False)]
)
def test_training_warns_of_a_flip_that_makes_classes_equal(flips, warned, turns, capsys) -> None:
    data = DataConfig(root=str(turns), **flips)
    manifest = build_manifest(ClassFolders(str(turns)), data, seed=0)
    warn_of_mirrored_classes(SimpleNamespace(is_main_process=True), manifest, data)  # type: ignore[arg-type]
    warning = capsys.readouterr().err
    if not warned:
        assert warning == ""
        return
    for fragment in ("turn_left", "turn_right", "data.hflip", "--data.hflip false"):
        assert fragment in warning
    assert warning.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"strategy": StrategyConfig(name="fine_tune")}, True),
        ({"strategy": StrategyConfig(name="frozen_head")}, False),
        ({"strategy": StrategyConfig(name="frozen_head"), "probe": {"augmented_copies": 1}}, True),
        ({"strategy": StrategyConfig(name="frozen_head"), "probe": {"augmented_copies": 1, "solver": "sgd"}}, True),
    ],
)
def test_every_strategy_that_flips_images_warns(changes, warned, turns, tmp_path, capsys) -> None:
    config = small(turns, tmp_path / "run", train={"epochs": 1}, runtime={"bank": str(tmp_path / "bank")})
    config = replace(config, strategy=changes["strategy"], probe=replace(config.probe, **changes.get("probe", {})))
    run(config)
    assert ("--data.hflip false" in capsys.readouterr().err) == warned


@pytest.mark.slow
def test_the_data_check_reports_the_pair(turns, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", "check", str(turns), "--bank", str(tmp_path / "bank")])
    assert end.value.code == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "turn_left" in line)
    assert "--data.hflip false" in line
