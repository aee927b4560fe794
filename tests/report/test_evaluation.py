"""The page that headstart evaluate writes to a name that ends in .html; JSON to any other name."""

import json
import re
import shutil
from datetime import UTC, date, datetime

import pytest

import headstart
from headstart.cli import main as cli


def exit_code(*argv):
    with pytest.raises(SystemExit) as end:
        cli.main([str(part) for part in argv])
    return end.value.code


@pytest.fixture(scope="module")
def evaluated(folder, tiny_data, tmp_path_factory):
    """The page of an evaluation on the validation images of the run."""
    out = tmp_path_factory.mktemp("evaluation") / "page.html"
    assert exit_code("evaluate", folder, "--data", tiny_data, "--out", out) == 0
    return out.read_text()


def text_of(page):
    return " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)).split())


def test_the_page_holds_the_numbers_of_the_evaluation(evaluated, folder):
    val = json.loads((folder / "summary.json").read_text())["val"]
    text = text_of(evaluated)
    low, high = val["accuracy_ci95"]
    assert f"of {val['n']} images are classified correctly ({val['correct']} of {val['n']})" in text
    assert f"{100 * low:.1f}% and {100 * high:.1f}%" in text
    assert f"{val['loss']:.3f}" in text
    assert f"Accuracy in the run {100 * val['accuracy']:.1f}%" in text
    for name, row in val["per_class"].items():
        assert f"{name} {row['n']} {100 * row['recall']:.1f}%" in text
    assert "are left out" in text
    assert evaluated.count("Grad-CAM of the same image") >= val["n"] - val["correct"]


def test_purpose_and_author_of_the_run_and_both_dates_are_shown(folder, tiny_data, tmp_path, capsys):
    run = shutil.copytree(folder, tmp_path / "run")
    (run / "about.json").write_text('{"purpose": "Counts <bees>", "author": "A. Person"}')
    trained = json.loads((run / "summary.json").read_text())["finished"][:10]
    before = datetime.now(UTC).date()
    command = ("evaluate", run, "--data", tiny_data, "--out", tmp_path / "page.html")
    assert exit_code(*command) == 0
    text = text_of((tmp_path / "page.html").read_text())
    found = re.search(r"Purpose Counts &lt;bees&gt; Author A. Person Trained (\S+) Evaluated (\S+) ", text)
    assert found is not None
    assert found[1] == trained
    assert before <= date.fromisoformat(found[2]) <= datetime.now(UTC).date()
    (run / "about.json").write_text('{"purpose": 3}')
    assert exit_code(*command) == 2
    assert "about.json" in capsys.readouterr().err


def test_it_is_self_contained(evaluated):
    links = re.findall(r'(?:src|href)="([^"]*)"', evaluated)
    assert len(links) > 20
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "http" not in re.sub(r'base64,[^"]*', "", evaluated)


def test_other_names_get_json_and_a_model_file_alone_says_that_training_images_are_unknown(folder, tiny_data, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path)
    model = tmp_path / "model.safetensors"
    found = headstart.evaluate(model, tiny_data / "val", out=tmp_path / "page.HTML")
    text = text_of((tmp_path / "page.HTML").read_text())
    assert "does not list the images that it was trained on" in text
    assert "Evaluated 20" in text
    assert "Trained 20" not in text
    headstart.evaluate(model, tiny_data / "val", out=tmp_path / "numbers.txt")
    assert json.loads((tmp_path / "numbers.txt").read_text()) == found.to_dict()


def test_a_folder_that_cannot_be_written_to_is_reported_before_the_work(folder, tmp_path, capsys):
    assert exit_code("evaluate", folder, "--data", tmp_path, "--out", tmp_path / "none" / "page.html") == 2
    assert "page.html" in capsys.readouterr().err
