"""report.html and the model card are made from the run folder alone."""

import html
import io
import json
import re
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support
from support.runs import small

from headstart.cli import main as cli
from headstart.cli.main import main
from headstart.config_io import to_yaml
from headstart.errors import InputError
from headstart.report import command
from headstart.report.charts import HEIGHT, LEFT, TOP, WIDTH, Line, Mark, line_chart
from headstart.report.figures import _reliability, bins, reliability
from headstart.report.gallery import (
    MAX_ERRORS,
    MAX_UNCONFIDENT,
    Card,
    Gallery,
    _overlay,
    gradcam,
    least_confident_correct,
    make_gallery,
    most_confident_errors,
)
from headstart.report.heat_map import heat_map
from headstart.report.pages import render_model_card, render_report
from headstart.report.per_class import confusions, per_class, worst_first
from headstart.runs.about import About
from headstart.runs.finished_run import read_run
from headstart.training.run import run as train


class Page(HTMLParser):
    """Tags with their attributes; ids; the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def exit_code(*argv):
    with pytest.raises(SystemExit) as end:
        cli.main([str(part) for part in argv])
    return end.value.code


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def run(folder):
    return read_run(folder)


NOTHING = Gallery([], [], 0)


def page_text(run):
    return Page(render_report(run, NOTHING)).text


def added(write, run, other):
    """Sentences of the page or card about `run` that are not in the one about `other`."""
    there, elsewhere = (set(re.split(r"(?<=[.;:!?])\s+|[\n|]", write(each))) for each in (run, other))
    return there - elsewhere


def with_calibration(run, **changes):
    return replace(run, info=replace(run.info, calibration=replace(run.info.calibration, **changes)))


def test_the_page_is_self_contained_and_accessible(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    links = [value for tag, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert len(links) > 20
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if attrs.get("class") == "chart")


def test_the_page_holds_the_numbers_of_the_summary(folder):
    val = json.loads((folder / "summary.json").read_text())["val"]
    text = Page((folder / "report.html").read_text()).text
    low, high = val["accuracy_ci95"]
    assert f"{100 * val['accuracy']:.1f}% of {val['n']} validation images" in text
    assert re.search(rf"\b{100 * low:.1f}% \w+ {100 * high:.1f}%", text)
    assert f"{val['loss']:.3f}" in text
    assert "optim. lr 0.0001" in text.replace("optim.lr", "optim. lr")
    for name, row in val["per_class"].items():
        low, high = row["recall_ci95"]
        shares = rf"{100 * row['recall']:.1f}% {100 * low:.1f}%? to {100 * high:.1f}%"
        assert re.search(rf"{name} 12 {row['n']} {shares}", text)
    for row in val["confusion_matrix"]:
        assert " ".join(f"{count} {round(100 * count / sum(row))}%" for count in row) in text


def test_pages_do_not_hold_the_signature_of_an_address(run):
    data = {**run.config["data"], "root": "https://store.example/shards/a.tar?X-Amz-Signature=secret&X-Amz-Date=1"}
    signed = replace(run, config={**run.config, "data": data})
    for text in (render_report(signed, NOTHING), render_model_card(signed)):
        assert "a.tar" in text
        assert "secret" not in text


def test_it_is_rewritten_from_the_folder_alone(copy, capsys):
    for name in ("report.html", "README.md"):
        (copy / name).unlink()
    assert exit_code("report", copy) == 0
    assert "report.html" in capsys.readouterr().out
    first = (copy / "report.html").read_text()
    assert first.count("data:image/jpeg") > 17
    assert exit_code("report", copy) == 0
    assert (copy / "report.html").read_text() == first
    assert not list(copy.glob(".*tmp"))


def test_images_that_moved_are_reported_as_missing_and_found_with_data(copy, tiny_data, tmp_path, capsys):
    moved = shutil.copytree(tiny_data, tmp_path / "moved")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["root"] = str(tmp_path / "gone")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert exit_code("report", copy) == 0
    text = (copy / "report.html").read_text()
    assert "No such file" in text
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "No such file" in line]
    assert re.search(r"\b(\d+) of \1 images\b.*--data\b", line)
    assert text.count("data:image/jpeg") == 12  # the augmented images, which lie in the folder
    run = read_run(copy)
    shown = run.paths[most_confident_errors(run)[0]]
    (moved / shown).write_bytes((moved / run.manifest.column("path")[0].as_py()).read_bytes())
    assert exit_code("report", copy, "--data", moved) == 0
    text = (copy / "report.html").read_text()
    assert text.count("data:image/jpeg") > 14
    assert f"{shown} (" in text
    printed = capsys.readouterr().out
    assert "1 of " in printed
    assert "--data" not in printed
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "nowhere", tmp_path / "nowhere.zip", tmp_path / "empty"):
        assert exit_code("report", copy, "--data", wrong) == 2
        message = capsys.readouterr().err
        assert f"--data {wrong}" in message
        assert str(copy) in message
        assert (copy / "report.html").read_text() == text


def test_a_data_folder_that_cannot_be_opened_is_reported_and_unknown_keys_do_no_harm(copy, tmp_path, capsys):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["of_another_version"] = 1
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert exit_code("report", copy) == 0
    assert "cannot be shown" not in capsys.readouterr().out
    (tmp_path / "broken.zip").write_text("not a zip file")
    config["data"]["root"] = str(tmp_path / "broken.zip")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert exit_code("report", copy) == 0
    line, _ = capsys.readouterr().out.splitlines()
    assert re.search(r"\b(\d+) of \1 images\b.*broken\.zip.*--data\b", line)
    assert "broken.zip" in (copy / "report.html").read_text()


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "predictions.parquet", "summary.json", "config.yaml", "metrics.jsonl", "manifest.parquet"],
)
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_an_incomplete_or_damaged_folder_is_refused_by_name(name, how, copy, capsys):
    before = (copy / "report.html").read_bytes()
    if how == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(b"{broken: [\n")
    assert exit_code("report", copy) == 2
    assert name in capsys.readouterr().err
    assert (copy / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("summary.json", "{}", "val"),
        ("summary.json", "[]", "mapping"),
        ("summary.json", {"val": {}}, "n, correct"),
        ("summary.json", {"val.loss": None}, "val.loss is None"),
        ("summary.json", {"val.confusion_matrix": [[1, 2], [3]]}, "val.confusion_matrix"),
        ("summary.json", {"versions": {}}, "headstart"),
        ("config.yaml", "hello", "mapping"),
        ("config.yaml", "data: 3", "data"),
        ("metrics.jsonl", "5\n", "line"),
        ("metrics.jsonl", '{"loss": 1}\n', "step, lr"),
        ("doctor.json", "{}", "root"),
        ("predictions.parquet", "probabilities", "column probabilities"),
        ("manifest.parquet", "split", "column split"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_name(name, content, fragment, copy, capsys):
    before = (copy / "report.html").read_bytes()
    if name.endswith(".parquet"):
        pq.write_table(pq.read_table(copy / name).drop_columns([content]), copy / name)
    elif isinstance(content, dict):
        summary = json.loads((copy / name).read_text())
        for key, value in content.items():
            section, _, last = key.rpartition(".")
            (summary[section] if section else summary)[last] = value
        (copy / name).write_text(json.dumps(summary))
    else:
        (copy / name).write_text(content)
    assert exit_code("report", copy) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(copy / name) in error
    assert fragment in error.partition(str(copy / name))[2]
    assert (copy / "report.html").read_bytes() == before


def test_a_probability_that_is_not_a_number_is_refused(copy, capsys):
    table = pq.read_table(copy / "predictions.parquet")
    rows = table.column("probabilities").to_pylist()
    rows[3][1] = float("nan")
    place = table.column_names.index("probabilities")
    pq.write_table(table.set_column(place, "probabilities", pa.array(rows)), copy / "predictions.parquet")
    assert exit_code("report", copy) == 2
    message = capsys.readouterr().err
    assert "probability" in message
    assert str(table.column("path")[3]) in message


def test_a_missing_folder_is_refused(tmp_path, capsys):
    assert exit_code("report", tmp_path / "none") == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return tmp_path_factory.mktemp("bank")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "probe", "charts"),
    [
        ("frozen_head", {"solver": "sgd"}, ["Loss", "Accuracy", "Learning rate"]),
        ("frozen_head", {"solver": "full_batch", "steps": 20}, ["Training loss", "Learning rate"]),
        ("probe_then_tune", {}, ["Loss", "Accuracy", "Learning rate"]),
    ],
)
def test_every_strategy_and_solver_has_its_page(strategy, probe, charts, bank, tiny_data, tmp_path, capsys):
    config = small(tiny_data, tmp_path / "run", strategy=strategy, probe=probe, runtime={"bank": str(bank)})
    folder = train(replace(config, strategy=replace(config.strategy, features="bank")))
    assert "warning" not in capsys.readouterr().err
    page = Page((folder / "report.html").read_text())
    captions = re.findall(r"<figcaption><h3>(.*?)</h3>", (folder / "report.html").read_text())
    assert captions[:-2] == charts
    assert re.search(r"temperature.*T = [\d.]+", captions[-1])
    assert [tag for tag, _ in page.tags].count("svg") == len(captions) + 1  # and the logo
    epochs = len([line for line in read_run(folder).lines if line.get("epoch")])
    assert read_run(folder).chosen_on_val == (epochs > 1 or strategy == "probe_then_tune")


@pytest.fixture(scope="module")
def without_report(tiny_data, tmp_path_factory):
    """A quiet run of one epoch whose report failed: its folder, and what it printed on stdout and stderr."""

    def fails(*args, **kwargs):
        raise RuntimeError("no ink left")

    folder = tmp_path_factory.mktemp("runs") / "run"
    config = folder.with_name("config.yaml")
    config.write_text(to_yaml(small(tiny_data, folder, train={"epochs": 1}, runtime={"quiet": True})))
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(command, "render_report", fails)
        with pytest.raises(SystemExit) as ended:
            main(["train", "--config", str(config)])
    assert ended.value.code == 0
    return folder, out.getvalue(), err.getvalue()


@pytest.mark.slow
def test_an_error_in_the_report_does_not_end_the_run(without_report):
    folder, printed, errors = without_report
    assert errors.count("warning") == 1
    for fragment in ("report.html", "README.md", "RuntimeError: no ink left"):
        assert fragment in errors
    assert printed == f"{folder}\n", "a quiet run prints its folder and nothing else"
    assert (folder / "summary.json").is_file()
    assert not (folder / "report.html").exists()


@pytest.mark.slow
def test_one_epoch_is_not_a_choice_and_few_images_give_no_threshold(without_report):
    run = read_run(without_report[0])
    assert not run.chosen_on_val
    assert run.info.calibration.open_set.limits[0.05] is None
    assert "15 validation images" in page_text(run)


def test_names_are_shown_as_text_and_never_as_markup(run):
    classes = ("<script>alert(1)</script>", "a|b", "</svg>")
    text = render_report(replace(run, info=replace(run.info, classes=classes)), NOTHING)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    card = render_model_card(replace(run, info=replace(run.info, classes=classes)))
    assert "| a\\|b | 0 |" in card
    yaml.safe_load(card.split("---")[1])


def test_names_in_the_card_are_text_in_any_markdown(run):
    strange = ("<img src=x onerror=alert(1)>", "pipe|star*_x_", "[a](b) `c` & \\ ~d~\n# e")
    card = render_model_card(replace(run, info=replace(run.info, classes=strange)))
    body = card.split("---", 2)[2]
    assert "<img" not in body
    assert "&lt;img src=x onerror=alert(1)&gt;" in body
    assert r"| pipe\|star\*\_x\_ | 0 |" in body
    assert r"| \[a\](b) \`c\` &amp; \\ \~d\~ \# e | 0 |" in body


def test_a_run_with_a_space_in_its_name_is_quoted(run, copy):
    folder = copy.rename(copy.parent / "it's my run")
    run = replace(run, path=folder)
    page, card = html.unescape(render_report(run, NOTHING)), render_model_card(run)
    for text in (page, card):
        assert f"headstart predict {shlex.quote(folder.name)} IMAGES..." in text
    assert f"headstart.load({folder.name!r})" in page
    assert f"model={folder.name + '-transformers'!r})" in card
    assert f"headstart export {shlex.quote(folder.name)} " in card


def test_every_interval_of_the_run_is_shown_with_its_method_and_none_is_never_written(run):
    val = run.summary.val
    page, card = Page(render_report(run, NOTHING)).text, render_model_card(run)
    for name, by in (("balanced_accuracy", "Wilson"), ("loss", "bootstrap"), ("brier", "bootstrap")):
        low, high = val[f"{name}_ci95"]
        assert re.search(rf"\| {low:.4f} to {high:.4f} \| [^|]*{by}", card)
        shown = f"{100 * low:.1f} to {100 * high:.1f}%" if name == "balanced_accuracy" else f"{low:.3f} to {high:.3f}"
        assert shown in page
    assert f"{val['ece_by_chance95']:.4f}" in card
    assert f"{100 * val['ece_by_chance95']:.1f}%" in page
    unknown = dict.fromkeys(["balanced_accuracy_ci95", "loss_ci95", "brier_ci95", "ece_by_chance95"])
    calibration = run.summary.calibration | {"ece_by_chance95": None}
    run = replace(run, summary=replace(run.summary, val={**val, **unknown}, calibration=calibration))
    for text in (Page(render_report(run, NOTHING)).text, render_model_card(run)):
        assert not re.search(r"\bNone\b(?! of these)", text)
        assert "by chance" not in text
        assert "would be chance" not in text


def test_purpose_and_author_are_kept_in_the_run_and_shown_with_its_date(copy, capsys):
    assert exit_code("report", copy, "--purpose", " Finds <waves> ", "--author", "A | B") == 0
    date = json.loads((copy / "summary.json").read_text())["finished"][:10]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    for again in ((), ("--author", "")):
        page, card = Page((copy / "report.html").read_text()).text, (copy / "README.md").read_text()
        assert "Purpose Finds <waves>" in page
        assert f"Author A | B Date {date}" in page
        assert "- Purpose: Finds &lt;waves&gt;\n" in card
        assert "- Author: A \\| B\n" in card
        assert f"- Date: {date}\n" in card
        assert exit_code("report", copy, *again) == 0
    assert "Author" not in (copy / "README.md").read_text()
    assert "- Purpose: Finds" in (copy / "README.md").read_text()
    before = (copy / "report.html").read_bytes()
    (copy / "about.json").write_text('{"purpose": 3}')
    capsys.readouterr()
    assert exit_code("report", copy) == 2
    message = capsys.readouterr().err
    assert "about.json" in message
    assert "purpose" in message
    assert (copy / "report.html").read_bytes() == before


def test_a_run_without_purpose_author_and_date_shows_how_to_add_them(run):
    run = replace(run, summary=replace(run.summary, finished=None), about=About())
    page = page_text(run)
    assert "Purpose" not in page
    assert f"headstart report {run.name} --purpose TEXT --author TEXT" in page
    assert "- Date" not in render_model_card(run)


def doctors_report(folder, root, paths, classes):
    """A folder such as `headstart data check --out` writes."""
    leak = {"kind": "duplicate_across_splits", "paths": paths, "message": "the same <file>"}
    leak["suggestions"] = ["drop", "keep"]
    found = {
        "root": str(root),
        "classes": dict.fromkeys(classes, 3),
        "findings": [leak, {**leak, "kind": "tiny"}] if paths else [],
        "counts": {"duplicate_across_splits": 1, "tiny": 1} if paths else {},
    }
    folder.mkdir()
    (folder / "doctor.json").write_text(json.dumps(found))
    return folder


def test_findings_of_the_doctor_are_shown(copy, run, tmp_path):
    pair = run.manifest.column("path").to_pylist()[:2]
    checked = doctors_report(tmp_path / "checked", "/data", pair, ["train/x"])
    assert not any(path in (copy / "report.html").read_text() for path in (", ".join(pair), "&lt;file&gt;"))
    assert exit_code("report", copy, "--doctor", checked) == 0
    text = (copy / "report.html").read_text()
    assert "the same &lt;file&gt;: " in text
    assert ", ".join(pair) in text
    assert re.search(r"[Tt]iny[^<]*\b1 file\b", text)
    shutil.copy(checked / "doctor.json", copy)
    assert exit_code("report", copy) == 0
    assert "the same &lt;file&gt;: " in (copy / "report.html").read_text()


def test_suspected_labels_are_shown_as_pictures(copy, run, tmp_path):
    paths = run.manifest.column("path").to_pylist()[:2]
    checked = doctors_report(tmp_path / "checked", "/data", paths, [])
    found = json.loads((checked / "doctor.json").read_text())
    found["findings"] = [{"kind": "suspected_label", "paths": [path], "message": "looks like"} for path in paths]
    (checked / "doctor.json").write_text(json.dumps(found))
    assert exit_code("report", copy, "--doctor", checked) == 0
    images = [
        attrs for tag, attrs in Page((copy / "report.html").read_text()).tags if attrs.get("class") == "thumbnail"
    ]
    assert [attrs["alt"] for attrs in images] == paths
    assert all(attrs["src"].startswith("data:image/jpeg") for attrs in images)


@pytest.mark.parametrize(("side", "cells"), [(2, "2 x 2"), (3, "3 x 3"), (4, None), (7, None)])
def test_the_report_gives_the_cells_of_a_coarse_attention_map(side, cells, run):
    text = render_report(run, replace(NOTHING, map_side=side))
    assert re.findall(r"\d x \d cells", text) == ([f"{cells} cells"] if cells else [])


def test_keys_of_the_configuration_break_between_their_parts(run):
    assert "<code>data.<wbr>image_<wbr>size</code>" in render_report(run, NOTHING)


@pytest.mark.parametrize(
    ("root", "paths", "classes", "code"),
    [
        ("/other", ["train/ants/1.jpg", "val/ants/1.jpg"], ["train/red_checks"], 2),
        ("/other", [], ["train/ants", "val/ants"], 2),
        ("/other", [], ["train/red_checks"], 0),
        ("/other", [], ["red_checks"], 0),
        ("tiny_data", ["val/red_checks/text.txt"], ["train/red_checks"], 0),
    ],
)
def test_the_doctors_report_of_other_images_is_refused(root, paths, classes, code, copy, tiny_data, tmp_path, capsys):
    before = (copy / "report.html").read_bytes()
    checked = doctors_report(tmp_path / "checked", tiny_data if root == "tiny_data" else root, paths, classes)
    assert exit_code("report", copy, "--doctor", checked) == code
    if code == 2:
        message = capsys.readouterr().err
        assert str(checked / "doctor.json") in message
        assert "/other" in message
        assert (copy / "report.html").read_bytes() == before


@pytest.mark.parametrize("write", [page_text, render_model_card])
def test_page_and_card_report_whether_the_images_chose_the_epoch(write, run):
    assert run.chosen_on_val
    conformal = run.info.calibration.conformal
    chosen, not_chosen = (with_calibration(run, conformal=replace(conformal, exact=exact)) for exact in (False, True))
    assert write(run) == write(chosen)
    assert any("epoch" in sentence for sentence in added(write, chosen, not_chosen))
    assert added(write, not_chosen, chosen)


@pytest.mark.parametrize("write", [page_text, render_model_card])
def test_page_and_card_name_the_images_that_new_ones_are_compared_with(write, run):
    open_set = replace(run.info.calibration.open_set, limits={0.05: 0.7})
    training, validation = (
        with_calibration(run, open_set=replace(open_set, held_out=held_out)) for held_out in (True, False)
    )
    assert any("training images" in sentence for sentence in added(write, training, validation))
    assert any("validation images" in sentence for sentence in added(write, validation, training))
    no_limit = with_calibration(run, open_set=replace(open_set, limits={0.05: None}, held_out=True))
    assert added(write, training, no_limit)


def test_ten_thousand_images_of_a_hundred_classes_stay_small(run, tiny_data):
    rng = np.random.default_rng(0)
    classes = tuple(f"class_{number:03d}" for number in range(100))
    labels = rng.integers(0, 100, 10_000)
    logits = rng.normal(0, 1, (10_000, 100))
    logits[np.arange(10_000), labels] += 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confusion = np.zeros((100, 100), dtype=int)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    steps = [{"step": k, "loss": 1 / k, "accuracy": 0.5, "lr": {"head": 1e-3}} for k in range(1, 20_000)]
    big = replace(
        run,
        info=replace(run.info, classes=classes, calibration=None),
        summary=replace(run.summary, val={**run.summary.val, "confusion_matrix": confusion.tolist()}),
        lines=[*run.lines, *steps],
        paths=[run.paths[0]] * 10_000,
        labels=labels,
        probabilities=probabilities,
    )
    text = render_report(big, make_gallery(run, lambda path: (tiny_data / path).read_bytes()))
    assert len(text.encode()) < 1_000_000
    assert "100 classes" in text
    assert text.count('<th scope="row">class_') > 200


def with_classes(run, number, seed=0):
    """The run with so many classes, and its confusion matrix."""
    confusion = np.random.default_rng(seed).integers(0, 9, (number, number)) + 30 * np.eye(number, dtype=int)
    val = {**run.summary.val, "confusion_matrix": confusion.tolist()}
    classes = tuple(f"class_{place:03d}" for place in range(number))
    info = replace(run.info, classes=classes, calibration=None)
    return replace(run, info=info, summary=replace(run.summary, val=val)), confusion


def test_up_to_a_hundred_classes_have_a_heat_map_and_its_axes_are_named(run):
    few, _ = with_classes(run, 24)
    assert "Predicted class" in page_text(few)
    assert "True class" in page_text(few)
    assert 'class="heat-map"' not in render_report(few, NOTHING)
    many, confusion = with_classes(run, 100)
    text = render_report(many, NOTHING)
    picture = re.search(r'<svg class="heat-map".*?</svg>', text, re.DOTALL)[0]
    assert picture.count("class_099") == 2
    assert "Predicted class" in picture
    assert "True class" in picture
    drawn = sum(path.count("M") for path in re.findall(r' d="([^"]*)"', picture))
    assert drawn == np.count_nonzero(confusion)
    numbers = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert numbers["counts"] == confusion.tolist()
    too_many, _ = with_classes(run, 101)
    assert 'class="heat-map"' not in render_report(too_many, NOTHING)


def test_a_larger_share_of_a_row_has_a_stronger_colour():
    svg = str(heat_map(np.array([[5, 2, 3], [0, 4, 0], [0, 0, 0]]), ("a", "b", "<c>")).svg)
    assert "&lt;c&gt;" in svg
    drawn = re.findall(r'class="(right|wrong)" opacity="([^"]*)" d="([^"]*)"', svg)
    assert [(kind, float(opacity), path.count("M")) for kind, opacity, path in drawn] == [
        ("right", 0.6, 1),
        ("right", 1.0, 1),
        ("wrong", 0.3, 2),
    ]


def test_long_names_on_the_axes_of_a_heat_map_differ_if_their_ends_do():
    common = "Amanita_muscaria_var_muscaria"
    svg = str(heat_map(np.diag([5, 4, 1]), (f"{common}_cap", f"{common}_stem", "c")).svg)
    names = re.findall(r">(Amanita[^<]*…[^<]*)<", svg)
    assert set(names) == {"Amanita_mus…scaria_cap", "Amanita_mus…caria_stem"}


def test_the_class_with_the_lowest_recall_is_first(run):
    confusion = np.array([[5, 0, 0], [0, 0, 0], [4, 0, 1]])
    rows = per_class(confusion, ("a", "empty", "c"), {})
    assert [row.name for row in worst_first(rows)] == ["c", "a", "empty"]
    changed = replace(run.summary, val={**run.summary.val, "confusion_matrix": [[5, 0, 0], [1, 4, 0], [4, 0, 1]]})
    table = re.search(
        r'<table class="[^"]*classes">.*?</table>', render_report(replace(run, summary=changed), NOTHING), re.S
    )
    assert re.findall(r'<th scope="row">(\w+)</th>', table[0]) == [run.classes[place] for place in (2, 1, 0)]


def test_a_card_names_the_predicted_and_the_true_class(run):
    card = Card("a.jpg", "bees", "ants", 0.956, 0.044, None, None)
    text = Page(render_report(run, replace(NOTHING, errors=[card], num_errors=1))).text
    assert "Predicted ants 95.6% · True bees 4.4%" in text


@pytest.mark.parametrize(("num_classes", "first"), [(2, "50%"), (3, "33%"), (10, "10%"), (1000, "0.1%")])
def test_the_axis_of_the_confidence_starts_at_one_of_the_classes(num_classes, first):
    confidence = np.linspace(1 / num_classes, 1, 40)
    svg = str(_reliability("t", confidence, confidence > 0.5, num_classes).svg)
    (y,) = {y for y in re.findall(r'y="(\d+)" text-anchor="middle">1?\d*\.?\d+%', svg)}
    labels = re.findall(rf'x="([\d.]+)" y="{y}" text-anchor="middle">([\d.]+%)', svg)
    assert labels[0] == (f"{LEFT:.1f}", first)
    assert labels[-1][1] == "100%"
    ideal = re.search(r'polyline class="ideal" points="([\d.]+),', svg)
    assert float(ideal[1]) == LEFT


def test_the_label_of_a_chosen_value_is_above_the_curves():
    for at in (1, 5, 9):
        line = Line("a", "val", list(range(10)), [float(k) for k in range(10)])
        svg = str(line_chart([line], title="t", x_label="x", mark=Mark(at, "kept: epoch 5")))
        assert float(re.search(r'<text class="mark" x="[\d.]+" y="([\d.]+)"', svg)[1]) < TOP


def test_grad_cam_has_a_colour_map_whose_lightness_rises():
    grey = Image.new("RGB", (64, 64), (90, 90, 90))
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    pixels = np.asarray(_overlay(grey, ramp), dtype=float)[32]
    lightness = pixels @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -1.5).all()
    assert lightness[-1] - lightness[0] > 80
    assert np.ptp(pixels - pixels.mean(axis=1, keepdims=True), axis=0).min() > 20  # not one hue


def test_the_attention_map_is_the_gradient_of_the_predicted_class(folder, run):
    """The folded trunk and the closed form against torchvision's network and a backward pass."""
    from headstart.model.model_file import load_model

    model, info = load_model(folder / "model.safetensors")
    pixels = torch.randint(0, 256, (3, 3, 96, 96), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    kept = []
    hook = model.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(info.preprocess.normalize(pixels))
    hook.remove()
    answers = [2, 0, 1]
    (gradient,) = torch.autograd.grad(logits[torch.arange(3), answers].sum(), kept[0])
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1).relu().detach()
    expected = expected / expected.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    ours = gradcam(folder / "model.safetensors", replace(info, mixed_precision="no"), pixels, answers)
    assert ours.shape == (3, 3, 3)
    assert ours.max() == 1
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


def test_the_numbers_per_class_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels, answers = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    confusion = np.zeros((4, 4), dtype=int)
    np.add.at(confusion, (labels, answers), 1)
    precision, recall, f1, count = precision_recall_fscore_support(labels, answers)
    rows = per_class(confusion, ("a", "b", "c", "d"), {"a": 7})
    np.testing.assert_allclose([row.precision.value for row in rows], precision)
    np.testing.assert_allclose([row.recall.value for row in rows], recall)
    np.testing.assert_allclose([row.f1 for row in rows], f1)
    assert [row.recall.n for row in rows] == count.tolist()
    assert [row.num_training for row in rows] == [7, 0, 0, 0]
    found = confusions(confusion, ("a", "b", "c", "d"), limit=3)
    wrong = sorted((int(confusion[i, j]) for i in range(4) for j in range(4) if i != j), reverse=True)
    assert [errors.count for *_, errors in found] == wrong[:3]


@given(st.lists(st.tuples(st.floats(0.1, 1), st.booleans()), min_size=1, max_size=300))
def test_bins_hold_each_image_once_and_images_are_chosen_by_confidence(rows):
    confidence, is_correct = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    found = bins(confidence, is_correct)
    sizes = [n for _, _, n in found]
    assert sum(sizes) == len(rows)
    assert sum(correct for _, correct, _ in found) == is_correct.sum()
    assert [mean for mean, _, _ in found] == sorted(mean for mean, _, _ in found)
    assert max(sizes) - min(sizes) <= 1
    run = SimpleNamespace(
        confidence=confidence,
        is_correct=is_correct,
        probabilities=np.zeros((len(rows), 10)),
        info=SimpleNamespace(calibration=None),
        summary=SimpleNamespace(val={}, calibration={}),
    )
    errors, unconfident = most_confident_errors(run), least_confident_correct(run)
    assert not is_correct[errors].any()
    assert is_correct[unconfident].all()
    assert confidence[errors].tolist() == sorted(confidence[~is_correct], reverse=True)[:MAX_ERRORS]
    assert confidence[unconfident].tolist() == sorted(confidence[is_correct])[:MAX_UNCONFIDENT]
    ((figure, _),) = reliability(run)
    assert "nan" not in str(figure.svg).lower()
    assert len(figure.rows) == len(found)


@given(
    st.lists(st.floats(1e-9, 1e9) | st.floats(-1e3, 1e3), min_size=1, max_size=400),
    st.booleans(),
    st.booleans(),
)
def test_every_curve_lies_inside_its_chart(values, log_y, zero):
    values = [abs(value) + 1e-12 for value in values] if log_y else values
    x = [float(k) for k in range(1, len(values) + 1)]
    line = Line("a<b", "val", x, values)
    svg = str(line_chart([line], title="t", x_label="x", log_y=log_y, zero=zero and not log_y, mark=Mark(1, "here")))
    points = [tuple(map(float, point.split(","))) for point in re.findall(r'points="([^"]*)"', svg)[0].split()]
    assert 1 <= len(points) <= 300
    assert all(0 <= px <= WIDTH and 0 <= py <= HEIGHT for px, py in points)
    assert "nan" not in svg


def test_the_model_card_holds_the_results(folder, run):
    card = (folder / "README.md").read_text()
    meta = yaml.safe_load(card.split("---")[1])
    val = json.loads((folder / "summary.json").read_text())["val"]
    assert meta["library_name"] == "headstart"
    assert meta["pipeline_tag"] == "image-classification"
    (result,) = meta["model-index"][0]["results"]
    assert result["task"]["type"] == "image-classification"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]}["accuracy"] == val["accuracy"]
    low, high = val["accuracy_ci95"]
    assert f"| {low:.4f} to {high:.4f} |" in card
    assert r"| blue\_waves | 12 | 5 |" in card
    assert re.search(r"\b20 training images\b.*blue\\_waves, green\\_stripes, red\\_checks", card)
    assert "resnet18(num_classes=3)" in card
    assert run.info.manifest_sha256 in card


@pytest.mark.parametrize(
    ("weights", "license_", "base_model"),
    [("imagenet", "bsd-3-clause", "timm/resnet18.tv_in1k"), ("bundled", "apache-2.0", None), ("none", None, None)],
)
def test_the_card_names_license_and_base_model_of_the_weights(weights, license_, base_model, run):
    card = render_model_card(replace(run, info=replace(run.info, weights=weights)))
    meta = yaml.safe_load(card.split("---")[1])
    assert (meta.get("license"), meta.get("base_model")) == (license_, base_model)
    assert ("non-commercial" in card) == (weights == "bundled")


def test_a_run_names_what_differs_from_the_defaults(run):
    changed = run.changed_keys()
    assert changed["data.image_size"] == 32
    assert changed["optim.lr"] == 1e-4
    assert "train.epochs" in changed
    assert "out" not in changed


def test_predictions_of_classes_that_the_model_lacks_are_refused(copy):
    table = pq.read_table(copy / "predictions.parquet")
    labels = pa.array(["violet", *table.column("label").to_pylist()[1:]])
    place = table.column_names.index("label")
    pq.write_table(table.set_column(place, "label", labels), copy / "predictions.parquet")
    with pytest.raises(InputError, match=r"predictions\.parquet.*classes"):
        read_run(copy)
