"""Runs are compared on the same images: difference, interval, p-value, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.evaluated_runs import write_evaluated_run

from headstart.cli import main as cli
from headstart.config import DataConfig
from headstart.data.manifest import build_manifest
from headstart.data.sources.open import open_source
from headstart.evaluation.statistics import newcombe

WriteRun = Callable[..., str]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """write_run("a", images, answers): a run folder, as `write_evaluated_run` makes it."""
    return lambda name, *args, **kwargs: str(write_evaluated_run(tmp_path / name, *args, **kwargs))


def flip(label: str) -> str:
    return "bees" if label == "ants" else "ants"


IMAGES = [(f"image {number}", ("ants", "bees")[number % 2]) for number in range(100)]
RIGHT = [label for _, label in IMAGES]


def wrong_at(*places: int) -> list[str]:
    return [flip(label) if number in places else label for number, label in enumerate(RIGHT)]


def compared(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert cli._exit_code(["compare", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli._exit_code(["compare", *argv]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


# ------------------------------------------------------------------------------------------------- the verdict


def test_a_better_run_is_better_and_in_the_other_order_worse(write_run, capsys) -> None:
    a, b = write_run("a", IMAGES, wrong_at(*range(20))), write_run("b", IMAGES, wrong_at(*range(4), 50))
    found = compared(capsys, a, b)["comparisons"][0]
    assert (found["gained"], found["lost"], found["n"]) == (16, 1, 100)
    assert found["verdict"] == "better"
    assert found["difference"] == pytest.approx(0.15)
    assert found["ci95"] == pytest.approx(newcombe(gained=16, lost=1, both=79, total=100))
    assert found["p_value"] == pytest.approx(2 * 18 / 2**17)
    assert found["loss_difference"] < 0
    assert found["loss_ci95"][1] < 0
    assert compared(capsys, b, a)["comparisons"][0]["verdict"] == "worse"


def test_a_difference_that_may_be_chance_is_not_proven_and_the_images_needed_are_reported(write_run, capsys) -> None:
    a, b = write_run("a", IMAGES, wrong_at(*range(6))), write_run("b", IMAGES, wrong_at(0, 1, 2))
    found = compared(capsys, a, b)["comparisons"][0]
    assert found["verdict"] == "not proven"
    assert found["images_needed"] > 100
    for fragment in ("100 images", a, b, f"{found['images_needed']:,} images"):
        assert fragment in found["in_words"]


def test_runs_of_equal_accuracy_need_no_number_of_images(write_run, capsys) -> None:
    a, b = write_run("a", IMAGES, wrong_at(1, 2)), write_run("b", IMAGES, wrong_at(2, 3))
    found = compared(capsys, a, b)["comparisons"][0]
    assert (found["verdict"], found["images_needed"], found["p_value"]) == ("not proven", None, 1.0)
    assert "None" not in found["in_words"]
    assert set(re.findall(r"(\d+) images", found["in_words"])) == {"100"}


def test_p_values_are_adjusted_for_the_number_of_comparisons(write_run, capsys) -> None:
    """8 to 1 has p = 0.039: enough for one comparison and not for three."""
    a, b = write_run("a", IMAGES, wrong_at(*range(8))), write_run("b", IMAGES, wrong_at(9))
    c, d = write_run("c", IMAGES, wrong_at(*range(7))), write_run("d", IMAGES, wrong_at(*range(8), 20))
    assert compared(capsys, a, b)["comparisons"][0]["verdict"] == "better"
    found = compared(capsys, a, b, c, d)
    assert [row["verdict"] for row in found["comparisons"]] == ["not proven"] * 3
    assert found["comparisons"][0]["p_holm"] == pytest.approx(3 * found["comparisons"][0]["p_value"])
    (note,) = [note for note in found["notes"] if "Holm" in note]
    assert "3 comparisons" in note
    assert "intervals" in note


def test_losses_that_differ_nowhere_have_no_interval(write_run, capsys, tmp_path) -> None:
    a, b = write_run("a", IMAGES, wrong_at(1)), write_run("b", IMAGES, wrong_at(1))
    assert compared(capsys, a, b)["comparisons"][0]["loss_ci95"] is None
    page = tmp_path / "ab.html"
    assert cli._exit_code(["compare", a, b, "--out", str(page)]) == 0
    for text in (capsys.readouterr().out, page.read_text()):
        assert re.search(r"\+0\.0000 \(no interval", text)


def test_a_run_whose_epoch_was_chosen_on_these_images_is_named(write_run, capsys) -> None:
    a, b = write_run("a", IMAGES, RIGHT), write_run("b", IMAGES, RIGHT, epochs=8)
    (note,) = compared(capsys, a, b)["notes"]
    assert b in note
    assert a not in note
    assert "best of 8" in note


def test_the_order_of_the_images_and_their_names_do_not_matter(write_run, capsys) -> None:
    a = write_run("a", IMAGES, wrong_at(*range(20)))
    order = np.random.default_rng(0).permutation(100)
    b = write_run(
        "b",
        [IMAGES[k] for k in order],
        [wrong_at(*range(4))[k] for k in order],
        paths=[f"moved/{k}.png" for k in order],
    )
    found = compared(capsys, a, b)["comparisons"][0]
    assert (found["gained"], found["lost"]) == (16, 0)


def test_the_order_of_the_classes_does_not_matter(write_run, capsys) -> None:
    classes = ("ants", "bees", "wasps")
    a = write_run("a", IMAGES, wrong_at(*range(20)), classes=classes)
    b = write_run("b", IMAGES, wrong_at(*range(4)), classes=("wasps", "ants", "bees"))
    c = write_run("c", IMAGES, wrong_at(*range(4)), classes=classes)
    found, straight = compared(capsys, a, b)["comparisons"][0], compared(capsys, a, c)["comparisons"][0]
    assert (found["gained"], found["lost"]) == (16, 0)
    assert found["loss_difference"] == straight["loss_difference"]
    assert [row["second"] for row in found["disagreements"]] == [row["second"] for row in straight["disagreements"]]


def test_copies_of_an_image_are_paired_one_by_one(write_run, capsys) -> None:
    images = [*IMAGES, IMAGES[0], IMAGES[0]]
    a = write_run("a", images, [*RIGHT, *RIGHT[:1] * 2])
    b = write_run("b", images, [*RIGHT, RIGHT[0], flip(RIGHT[0])])
    found = compared(capsys, a, b)["comparisons"][0]
    assert (found["n"], found["gained"], found["lost"]) == (102, 0, 1)


def test_disagreements_are_listed_with_both_predictions(write_run, capsys) -> None:
    classes = ("ants", "bees", "wasps")
    a = write_run("a", IMAGES, ["wasps", "ants", *RIGHT[2:]], classes=classes)
    b = write_run("b", IMAGES, ["bees", "bees", "bees", *RIGHT[3:]], classes=classes)
    rows = compared(capsys, a, b)["comparisons"][0]["disagreements"]
    assert [(row["first"], row["second"], row["correct"]) for row in rows] == [
        ("wasps", "bees", "neither"),
        ("ants", "bees", "second"),
        ("ants", "bees", "first"),
    ]
    assert rows[0]["path"] == "val/ants/image 0.jpg"
    assert rows[0]["first_probability"] == pytest.approx(0.7)


# ------------------------------------------------------------------------------------------------- what is refused


def test_other_images_are_refused_counted_and_named(write_run, capsys) -> None:
    a = write_run("a", IMAGES, RIGHT)
    others = [*IMAGES[5:], ("image new", "ants")]
    b = write_run("b", others, [label for _, label in others])
    message = refused(capsys, a, b)
    assert f"{a} (val/ants/image 0.jpg, val/bees/image 1.jpg, val/ants/image 2.jpg and 2 more)" in message
    assert f"{b} (val/ants/image new.jpg)" in message
    assert re.search(r"\b5\b.*\b1\b.*--common.*\b95\b", message.replace(a, "").replace(b, ""))


def test_common_compares_the_images_of_all_runs_and_reports_their_number(write_run, capsys) -> None:
    a, b = write_run("a", IMAGES, RIGHT), write_run("b", IMAGES[5:], wrong_at(50)[5:])
    found = compared(capsys, a, b, "--common")
    assert [run["n"] for run in found["runs"]] == [95, 95]
    assert found["comparisons"][0]["lost"] == 1
    (note,) = found["notes"]
    assert "95 images" in note
    assert f"{a} 100, {b} 95" in note


def test_the_same_image_with_another_label_is_a_difference(write_run, capsys) -> None:
    a = write_run("a", IMAGES, RIGHT)
    b = write_run("b", [("image 0", "bees"), *IMAGES[1:]], RIGHT)
    message = refused(capsys, a, b)
    assert "label (val/ants/image 0.jpg)" in message
    assert re.search(r"--common.*\b99\b", message)


def test_runs_without_common_images_are_refused_with_and_without_common(write_run, capsys) -> None:
    a, b = write_run("a", IMAGES[:50], RIGHT[:50]), write_run("b", IMAGES[50:], RIGHT[50:])
    assert "in common" in refused(capsys, a, b, "--common")
    assert "50" in refused(capsys, a, b)


def test_other_classes_are_refused(write_run, capsys) -> None:
    a = write_run("a", IMAGES, RIGHT)
    b = write_run("b", IMAGES, RIGHT, classes=("ants", "bees", "wasps"))
    message = refused(capsys, a, b)
    assert b in message
    assert "ants, bees, wasps" in message


def test_what_is_not_a_run_is_refused(write_run, capsys, tmp_path) -> None:
    a = write_run("a", IMAGES, RIGHT)
    assert "two run folders" in refused(capsys, a)
    assert "twice" in refused(capsys, a, f"{a}/")
    assert "twice" in refused(capsys, a, f"{a}/../a")
    assert str(tmp_path / "nowhere") in refused(capsys, a, str(tmp_path / "nowhere"))
    assert "summary.json" in refused(capsys, a, str(tmp_path))
    b = write_run("b", IMAGES, RIGHT)
    message = refused(capsys, a, b, "--out", "page.png")
    assert "page.png" in message
    assert ".html" in message
    Path(b, "predictions.parquet").write_bytes(b"PAR1")
    assert f"{b}/predictions.parquet" in refused(capsys, a, b)
    Path(b, "manifest.parquet").unlink()
    message = refused(capsys, a, b)
    assert b in message
    assert "manifest.parquet" in message
    Path(b, "summary.json").write_text("{")
    assert f"{b}/summary.json" in refused(capsys, a, b)


@pytest.mark.parametrize("content", ["{}", "[]", '{"strategy": "fine_tune", "epochs": "many"}'])
def test_a_summary_of_another_shape_is_refused_by_name(content, write_run, capsys) -> None:
    a, b = write_run("a", IMAGES, RIGHT), write_run("b", IMAGES, RIGHT)
    Path(b, "summary.json").write_text(content)
    assert f"{b}/summary.json" in refused(capsys, a, b)


@pytest.mark.parametrize(("name", "column"), [("manifest", "sha256"), ("predictions", "probabilities")])
def test_a_table_without_a_column_is_refused_by_name(name, column, write_run, capsys) -> None:
    a, b = write_run("a", IMAGES, RIGHT), write_run("b", IMAGES, RIGHT)
    path = Path(b, f"{name}.parquet")
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    message = refused(capsys, a, b)
    assert str(path) in message
    assert f"column {column}" in message


def test_a_probability_that_is_not_a_number_is_refused(write_run, capsys) -> None:
    a, b = write_run("a", IMAGES, RIGHT), write_run("b", IMAGES, RIGHT, sure=float("nan"))
    message = refused(capsys, a, b)
    assert "probability" in message
    assert "val/ants/image 0.jpg" in message


# ------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            assert values["alt"]
            self.pictures.append(values["src"] or "")
        self.links += [values[name] or "" for name in ("href", "src") if name in values]


def test_the_page_holds_its_images_and_needs_no_network(write_run, capsys, tiny_data, tmp_path) -> None:
    manifest = build_manifest(open_source(DataConfig(root=str(tiny_data))), DataConfig(root=str(tiny_data)), seed=0).of(
        "val"
    )
    images = list(zip(manifest.column("sha256"), manifest.column("label"), strict=True))
    classes = sorted(set(manifest.column("label")))
    arguments = {"classes": classes, "paths": manifest.column("path"), "root": str(tiny_data)}
    a = write_run("a", images, [label for _, label in images], **arguments)
    b = write_run("b<script>", images, [*[classes[2]] * 3, *[label for _, label in images[3:]]], **arguments)
    assert cli._exit_code(["compare", a, b, "--out", str(tmp_path / "page.html")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "15 images" in printed
    assert b in printed
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.pictures) == 3
    assert all(
        source.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,", "#")) for source in page.links
    )
    assert not re.search(r"https?://", text)
    assert "b<script>" not in text
    assert manifest.column("path")[0] in text


def test_images_that_changed_or_vanished_are_named_and_not_shown(write_run, capsys, tiny_data, tmp_path) -> None:
    source = open_source(DataConfig(root=str(tiny_data)))
    manifest = build_manifest(source, DataConfig(root=str(tiny_data)), seed=0).of("val")
    images = list(zip(manifest.column("sha256"), manifest.column("label"), strict=True))
    classes, right = sorted(set(manifest.column("label"))), [label for _, label in images]
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    first, second, third = manifest.column("path")[:3]
    (data / first).write_bytes((data / third).read_bytes())
    (data / second).unlink()
    arguments = {"classes": classes, "paths": manifest.column("path"), "root": str(data)}
    a = write_run("a", images, right, **arguments)
    b = write_run("b", images, [*[classes[2]] * 3, *right[3:]], **arguments)
    assert cli._exit_code(["compare", a, b, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for report in (" ".join(capsys.readouterr().out.split()), text):
        assert re.search(rf"\b2 of 3 images\b.*{re.escape(first)} \(.*{re.escape(second)} \(No such file", report)
    assert len(Page(text).pictures) == 1


def test_without_the_images_the_page_names_them(write_run, capsys, tmp_path) -> None:
    a, b = write_run("a", IMAGES, RIGHT), write_run("b", IMAGES, wrong_at(3))
    assert cli._exit_code(["compare", a, b, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert Page(text).pictures == []
    assert "val/bees/image 3.jpg" in text
    scale = re.findall(r'<span style="left:(\d+)%">(.*?)</span>', text)
    assert [place for place, _ in scale] == ["0", "50", "100"]
    assert scale[0][1] == "-" + scale[2][1].removeprefix("+").removesuffix(" points")
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 image cannot" in printed
    assert "val/bees/image 3.jpg (No such file" in printed
