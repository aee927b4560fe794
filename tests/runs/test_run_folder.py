"""The run folder and the model file as other programs use them."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.runs import RUN_FILES, small
from torchvision.models import resnet18

import headstart
from headstart.cli.main import main
from headstart.data.decode import decode
from headstart.model.model_file import load_model, read_info, save_model
from headstart.training.run import run

SUMMARY = {
    "strategy",
    "classes",
    "val",
    "best_epoch",
    "epochs",
    "wall_s",
    "train_images_per_s",
    "world_size",
    "mixed_precision",
    "seed",
    "weights",
    "model_sha256",
    "versions",
}


@pytest.fixture(scope="module")
def folder(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    changes = {"train": {"checkpoint_steps": 5}, "runtime": {"mixed_precision": "auto"}}
    return run(small(tiny_data, out, strategy="frozen_head", **changes))


def exit_code(*argv):
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return end.value.code


def test_it_holds_the_documented_files_and_no_temporary_ones(folder):
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    assert not list(folder.rglob("*.tmp"))


def test_no_file_in_it_can_execute_code(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        head = path.read_bytes()[:4]
        assert head[:1] != b"\x80", f"{path} starts like a pickle"
        assert head != b"PK\x03\x04", f"{path} starts like a zip, as torch.save writes"


def test_the_summary_has_the_documented_keys(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY
    assert summary["val"].keys() >= {"n", "correct", "accuracy", "accuracy_ci95", "loss"}
    assert summary["val"]["n"] == 15
    assert summary["val"]["accuracy"] == summary["val"]["correct"] / 15


def test_the_pictures_can_be_opened(folder):
    for name in ("train_batch.png", "val_predictions.png"):
        with Image.open(folder / name) as image:
            image.load()
            assert min(image.size) > 200


def test_the_manifest_lists_training_and_validation_images(folder, tiny_data):
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    assert {(row["split"], row["label"]) for row in rows} == {
        (split, path.name) for split in ("train", "val") for path in (tiny_data / split).iterdir()
    }
    assert len(rows) == 51
    assert all((tiny_data / row["path"]).is_file() for row in rows)


def test_predictions_agree_with_the_summary(folder):
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    summary = json.loads((folder / "summary.json").read_text())
    assert len(rows) == summary["val"]["n"]
    assert sum(row["label"] == row["predicted"] for row in rows) == summary["val"]["correct"]
    classes = summary["classes"]
    losses = [-np.log(row["probabilities"][classes.index(row["label"])]) for row in rows]
    assert np.mean(losses) == pytest.approx(summary["val"]["loss"], rel=1e-12)
    for row in rows:
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert row["predicted"] == classes[int(np.argmax(row["probabilities"]))]


def test_plain_torchvision_opens_the_model_and_predicts_the_same(folder, tiny_data):
    model = resnet18(num_classes=3)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    info = read_info(folder / "model.safetensors")
    path = next((tiny_data / "val").rglob("*.*"))
    pixels = info.preprocess.normalize(info.preprocess.resize_and_crop(decode(path.read_bytes()))[None])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=info.mixed_precision == "bf16"):
        theirs = model.eval()(pixels).double().softmax(1)[0]
    ours = headstart.load(folder).predict([path], calibrated=False)[0].probabilities
    assert list(ours) == list(info.classes)
    assert list(ours.values()) == pytest.approx(theirs.tolist(), abs=1e-6 if info.mixed_precision == "no" else 5e-3)


def test_weights_are_float32_and_counters_int64(folder):
    dtypes = {name: value.dtype for name, value in load_file(folder / "model.safetensors").items()}
    assert dtypes.pop("bn1.num_batches_tracked") == torch.int64
    assert {d for name, d in dtypes.items() if "num_batches" not in name} == {torch.float32}


def test_the_header_describes_the_model(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "pt"
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads(header["headstart.classes"]) == summary["classes"]
    assert json.loads(header["headstart.metrics"])["val"]["accuracy_ci95"] == summary["val"]["accuracy_ci95"]
    assert json.loads(header["headstart.manifest_sha256"]) == summary["manifest_sha256"]
    assert json.loads(header["headstart.preprocess"])["image_size"] == 32


def test_evaluate_reproduces_the_training_run_to_the_last_digit(folder, tiny_data, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    assert exit_code("evaluate", folder, "--data", tiny_data, "--out", out) == 0
    assert json.loads(out.read_text()) == json.loads((folder / "summary.json").read_text())["val"]
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_takes_columns_and_split_from_the_run_and_leaves_its_training_images_out(tiny_data, tmp_path, capsys):
    table = tmp_path / "list.csv"
    rows = (path.relative_to(tiny_data).parts for path in sorted(tiny_data.glob("*/*/*")))
    lines = [f"{tiny_data}/{'/'.join(parts)},{parts[1]},{parts[0]}" for parts in rows]
    table.write_text("\n".join(["picture,kind,part", *lines]) + "\n")
    data = {"image_column": "picture", "label_column": "kind", "split_column": "part"}
    anew = data | {"split": "stratified", "val_fraction": 0.25}  # what the table calls val was trained on, too
    trained = run(small(table, tmp_path / "run", strategy="frozen_head", train={"epochs": 1}, data=anew))
    out = tmp_path / "numbers.json"
    assert exit_code("evaluate", trained, "--data", table, "--out", out) == 0
    assert json.loads(out.read_text()) == json.loads((trained / "summary.json").read_text())["val"]
    assert re.search(r"\b38\b", capsys.readouterr().out)

    table.write_text(table.read_text().replace("picture,kind,part", "file,class,when").replace(",val\n", ",later\n"))
    named = ("--image_column", "file", "--label_column", "class", "--split_column", "when", "--split", "later")
    assert exit_code("evaluate", trained / "model.safetensors", "--data", table, *named, "--out", out) == 0
    assert exit_code("evaluate", trained, "--data", tiny_data, "--image_column", "file") == 2
    message = capsys.readouterr().err
    assert "image_column" in message
    assert "'file'" in message


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size, folder, tiny_data, tmp_path):
    numbers = tmp_path / "numbers.json"
    info = read_info(folder / "model.safetensors")
    copy = tmp_path / "model.safetensors"
    save_model(copy, load_model(folder / "model.safetensors")[0], replace(info, eval_batch_size=batch_size))
    assert exit_code("evaluate", copy, "--data", tiny_data, "--out", numbers) == 0
    here = json.loads(numbers.read_text())
    there = json.loads((folder / "summary.json").read_text())["val"]
    assert here["confusion_matrix"] == there["confusion_matrix"]
    assert here["loss"] == pytest.approx(
        there["loss"], rel=1e-5 if read_info(folder / "model.safetensors").mixed_precision == "no" else 1e-2
    )


@pytest.mark.slow
def test_the_run_folder_alone_predicts_in_a_new_process_elsewhere(folder, tiny_data, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    out = tmp_path / "predictions.csv"
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "predict", str(moved), str(tiny_data / "val"), "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.read_text().splitlines()))
    expected = {row["path"]: row["predicted"] for row in pq.read_table(folder / "predictions.parquet").to_pylist()}
    assert len(rows) == 15
    assert {row["path"].split("/tiny/")[-1].split(f"{tiny_data}/")[-1]: row["predicted"] for row in rows} == expected


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_are_written_by_the_extension(suffix, folder, tiny_data, tmp_path, capsys):
    out = tmp_path / f"table{suffix}"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    assert exit_code("predict", folder, tiny_data / "val", broken, "--out", out) == 0
    if suffix == ".csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = pq.read_table(out).to_pylist()
    assert len(rows) == 16
    assert "not an image" in rows[-1]["error"]
    assert not rows[-1]["predicted"]
    assert all(row["predicted"] for row in rows[:-1])
    assert "1 of 16" in capsys.readouterr().out


def test_globs_and_folders_find_the_same_images(folder, tiny_data):
    from headstart.predict.image_paths import images

    found = [list(images([str(tiny_data / "val" / pattern)])) for pattern in ("*/*", "**/*.*", "")]
    assert len(found[0]) == 15
    assert found[0] == found[1] == found[2]


def test_file_names_are_printed_as_they_are(folder, tiny_data, tmp_path, capsys, monkeypatch):
    odd = tmp_path / "x[red].jpg"
    odd.write_bytes(next((tiny_data / "val" / "red_checks").iterdir()).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert exit_code("predict", folder, odd.name) == 0
    assert "x[red].jpg" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_folder_is_refused(folder, tiny_data, tmp_path):
    elsewhere = next((folder / "checkpoints").iterdir())
    config = small(tiny_data, tmp_path / "b", strategy="frozen_head", train={"resume": str(elsewhere)})
    with pytest.raises(headstart.InputError, match=f"{re.escape(str(elsewhere))}.*--out"):
        run(config)
    assert not (tmp_path / "b").exists()
