"""headstart probe, headstart data bank, headstart bench features."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from headstart.cli.main import main
from headstart.diagnostics import bench_features
from headstart.evaluation.statistics import wilson
from headstart.features.probe_study import study


def exit_code(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return int(end.value.code or 0)


def blobs(n: int, *, spread: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % 3)
    features = rng.normal(0, 1, (n, 24)) + rng.normal(0, spread, (3, 24))[labels]
    return features.astype(np.float32), labels, [f"image {i}" for i in range(n)]


def found(n: int = 150, *, spread: float = 0.35, repeats: int = 3, seed: int = 0):
    features, labels, ids = blobs(n, spread=spread)
    return study(features, labels, ids, classes=("a", "b", "c"), folds=5, repeats=repeats, seed=seed)


def test_the_accuracy_lies_in_its_interval_and_each_image_is_evaluated_once_per_repeat() -> None:
    result = found()
    assert result.ci95[0] < result.mean < result.ci95[1]
    assert len(result.accuracies) == 3
    assert result.mean == pytest.approx(np.mean(result.accuracies))
    assert np.sum(result.confusion_matrix) == 3 * 150
    assert np.trace(result.confusion_matrix) == round(3 * 150 * result.mean)
    assert sum(row["n"] for row in result.per_class.values()) == 150


def test_the_same_seed_finds_the_same_and_another_one_differs() -> None:
    assert found() == found()
    assert found().accuracies != found(seed=1).accuracies


def test_more_images_per_class_help_and_the_sets_stop_before_they_run_out() -> None:
    curve = found(repeats=5).curve
    assert [point["per_class"] for point in curve] == [1, 2, 5, 10, 20]
    assert curve[-1]["accuracy"] > curve[0]["accuracy"]


def test_features_without_information_have_the_accuracy_of_chance() -> None:
    result = found(spread=0.0)
    assert result.ci95[0] < 1 / 3 < result.ci95[1]


def test_the_commands_study_list_and_prune(tiny_data, tmp_path, capsys) -> None:
    bank, out = tmp_path / "bank", tmp_path / "study.json"
    options = ["--weights", "bundled", "--image_size", 32, "--repeats", 2, "--bank", bank, "--out", out]
    assert exit_code("probe", tiny_data, *options) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"{re.escape(str(tiny_data))}\b.*\b51 images", printed)  # of both splits
    assert re.search(r"\b2 x 5\b.*\b51 images", printed)
    assert "blue_waves" in printed
    assert json.loads(out.read_text())["n"] == 51
    assert exit_code("data", "bank", "--bank", bank) == 0
    listed = capsys.readouterr().out
    assert re.search(r"\b1 key", listed)
    assert "32 px" in listed
    key = next(path.name for path in bank.iterdir())
    assert exit_code("data", "bank", "--bank", bank, "--prune", "nothing") == 2
    assert exit_code("data", "bank", "--bank", bank, "--prune_unused", 1) == 0
    assert exit_code("data", "bank", "--bank", bank, "--prune", key[:6]) == 0
    assert list(Path(bank).iterdir()) == []


def test_a_class_of_copies_is_named_before_anything_is_computed(image_folder, tmp_path, capsys) -> None:
    folder = image_folder(train=3)
    copies = folder / "zcopy"
    copies.mkdir()
    for path in sorted((folder / "red_checks").iterdir())[:2]:
        shutil.copy(path, copies)
    bank = tmp_path / "bank"
    assert exit_code("probe", folder, "--weights", "bundled", "--image_size", 32, "--bank", bank) == 2
    complaint = capsys.readouterr().err
    assert "'zcopy'" in complaint
    assert "copies" in complaint
    assert complaint.count("\n") == 1
    assert not list(bank.glob("*/*.safetensors"))


def test_fewer_folds_than_requested_are_reported(image_folder, tmp_path, capsys) -> None:
    options = ["--weights", "bundled", "--image_size", 32, "--repeats", 2, "--bank", tmp_path / "bank"]
    assert exit_code("probe", image_folder(train=3), *options, "--out", tmp_path / "found.json") == 0
    assert re.search(r"\b2 x 3\b.*\b9 images\b.*\b3\b", capsys.readouterr().out)
    assert json.loads((tmp_path / "found.json").read_text())["folds"] == 3


def test_folds_that_do_not_vary_leave_the_uncertainty_of_so_many_images() -> None:
    result = found(51, spread=3.0)
    assert result.mean == 1.0
    assert result.ci95 == pytest.approx(wilson(51, 51))


def test_the_interval_is_never_narrower_than_that_of_one_evaluation_of_all_images() -> None:
    result = found(spread=0.8)
    low, high = wilson(round(result.mean * 150), 150)
    assert result.ci95[0] <= low
    assert result.ci95[1] >= high


@pytest.mark.slow
def test_the_benchmark_compares_with_the_rate_in_memory(image_folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench_features, "ROUND_S", 0.2)
    data = str(image_folder(train=4, val=2))
    bench_features.bench_features(data, weights_source="bundled", precision="bf16", rounds=1, image_size=32)
    printed = capsys.readouterr().out
    assert "18 images" in printed
    assert "in-memory" in printed
    assert re.search(r"cosine.*0\.999", printed)


def test_the_benchmark_names_a_missing_folder(tmp_path, capsys) -> None:
    assert exit_code("bench", "features", "--data", tmp_path / "nowhere", "--rounds", 1) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_no_repeats_are_refused(tiny_data, capsys) -> None:
    assert exit_code("probe", tiny_data, "--repeats", 0) == 2
    assert re.search(r"--repeats\b.*\b0\b", capsys.readouterr().err)
