"""Several runs in one: seeds and folds, continued where they were left, summed up, and one per GPU."""

import json
import math
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from support.runs import small, stopped_at, summary

from headstart import InputError
from headstart.cli.train import parse_train
from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.evaluation.statistics import student_t, wilson
from headstart.report.comparison import read_evaluated_run
from headstart.runs.lock import RUNNING
from headstart.runs.summary import RepeatsSummary, Summary
from headstart.training.one_per_gpu import run_on_gpus
from headstart.training.repeats import configs_of_repeats
from headstart.training.run import run
from headstart.training.summarize_repeats import Repeat, repeats_in_words, summarize_repeats

pytestmark = pytest.mark.slow


def repeated(root: Path, out: Path, bank: Path, *, strategy: str = "frozen_head", **train: int) -> RunConfig:
    config = small(root, out, strategy=strategy, train=train, runtime={"bank": str(bank)})
    return replace(config, strategy=replace(config.strategy, features="bank"), probe=replace(config.probe, l2=1.0))


def clipped(mean: float, reach: float) -> list[float] | None:
    """The interval that a summary holds; none where the accuracies are all the same."""
    return [max(0.0, mean - reach), min(1.0, mean + reach)] if reach > 1e-12 else None


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def seeds(tiny_data, bank, tmp_path_factory) -> Path:
    return run(repeated(tiny_data, tmp_path_factory.mktemp("runs") / "seeds", bank, seeds=2))


@pytest.fixture(scope="module")
def folds(tiny_data, bank, tmp_path_factory) -> Path:
    return run(repeated(tiny_data, tmp_path_factory.mktemp("runs") / "folds", bank, folds=2))


def summarized(config: RunConfig, folder: Path, *changes: dict) -> RepeatsSummary:
    """The summary of finished runs, some of whose summaries are changed; a change of "val" is merged into it."""
    repeats = [
        Repeat(name, one, Summary.read(folder / name)) for name, one in configs_of_repeats(config, folder).items()
    ]
    for index, change in enumerate(changes):
        before = repeats[index].summary
        changed = replace(before, **change | {"val": before.val | change.get("val", {})})
        repeats[index] = replace(repeats[index], summary=changed)
    return summarize_repeats(config, folder, repeats, wall_s=1.0)


# ------------------------------------------------------------------------------------------------- seeds


def test_each_seed_has_a_run_folder_of_its_own(seeds: Path) -> None:
    assert sorted(path.name for path in seeds.iterdir()) == ["config.yaml", "seed_0", "seed_1", "summary.json"]
    for number in (0, 1):
        assert summary(seeds / f"seed_{number}")["seed"] == number
        assert (seeds / f"seed_{number}" / "model.safetensors").exists()


def test_the_summary_of_seeds_is_the_mean_with_its_spread_and_intervals(seeds: Path) -> None:
    found, vals = summary(seeds), [summary(seeds / name)["val"] for name in ("seed_0", "seed_1")]
    accuracies = [val["accuracy"] for val in vals]
    assert found["repeats"] == "seeds"
    assert found["same_images"]
    assert found["val"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["val"]["accuracy_ci95"] == pytest.approx(wilson(round(np.mean([v["correct"] for v in vals])), 15))
    spread = found["spread"]["accuracy"]
    assert spread["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    reach = student_t(0.975, 1) * spread["sd"] / math.sqrt(2)
    assert spread["ci95"] == pytest.approx(clipped(np.mean(accuracies), reach))
    assert not found["epoch_chosen_on_val"]
    assert [row["folder"] for row in found["runs"]] == ["seed_0", "seed_1"]


def test_seeds_that_split_the_data_differently_are_not_independent(seeds: Path, tiny_data, bank) -> None:
    config = repeated(tiny_data, seeds, bank, seeds=2)
    other = {"manifest_sha256": "another", "val": {"accuracy": 0.502}}
    found = summarized(config, seeds, {"val": {"accuracy": 0.5}}, other)
    assert not found.same_images
    spread = found.spread["accuracy"]
    assert spread["ci95_is"].startswith("t, ")
    reach = student_t(0.975, 1) * spread["sd"] * math.sqrt(1 / 2 + 15 / 36)
    assert spread["ci95"] == pytest.approx(clipped(spread["mean"], reach))


def test_seeds_with_different_validation_images_are_pooled_without_an_interval(seeds: Path, tiny_data, bank) -> None:
    config = repeated(tiny_data, seeds, bank, seeds=2)
    found = summarized(
        config,
        seeds,
        {"val": {"n": 15, "correct": 15, "accuracy": 1.0, "loss": 0.1}},
        {"manifest_sha256": "another", "val": {"n": 45, "correct": 44, "accuracy": 44 / 45, "loss": 0.3}},
    )
    assert found.val == {
        "n": 60,
        "correct": 59,
        "accuracy": 59 / 60,
        "accuracy_ci95": None,
        "loss": pytest.approx(0.25),
    }
    assert any("59 of 60" in line for line in repeats_in_words(found))


def test_intervals_over_runs_stay_between_0_and_1_and_need_runs_that_differ(seeds: Path, tiny_data, bank) -> None:
    config = repeated(tiny_data, seeds, bank, seeds=2)
    spread = summarized(config, seeds, *({"val": {"accuracy": value}} for value in (0.8, 0.95))).spread["accuracy"]
    assert (spread["ci95"], spread["ci95_is"]) == ([0.0, 1.0], "t")
    found = summarized(config, seeds, *({"val": {"accuracy": 1.0}} for _ in range(2)))
    assert found.spread["accuracy"]["ci95"] is None
    assert found.spread["accuracy"]["ci95_is"].startswith("none")
    assert "[" not in repeats_in_words(found)[-1]  # no interval


@pytest.mark.slow
def test_an_epoch_that_was_selected_on_the_validation_images_is_reported(folds: Path, tiny_data, bank) -> None:
    config = repeated(tiny_data, folds, bank, folds=2)
    plain = summarized(config, folds)
    assert not plain.epoch_chosen_on_val
    for change in ({"epochs": 3}, {"epochs": 1, "probe": {"tuning_kept": True}}):
        found = summarized(config, folds, change, change)
        assert found.epoch_chosen_on_val
        (caveat,) = set(repeats_in_words(found)) - set(repeats_in_words(plain))
        assert "epoch" in caveat


def test_the_folder_of_seeds_is_not_compared_and_says_what_is(seeds: Path) -> None:
    with pytest.raises(InputError, match=rf"{seeds}.*seed_0"):
        read_evaluated_run(str(seeds))


# ------------------------------------------------------------------------------------------------- folds


@pytest.mark.slow
def test_over_the_folds_every_image_is_measured_once(folds: Path, tiny_data) -> None:
    found = summary(folds)
    rows = pq.read_table(folds / "predictions.parquet").to_pylist()
    assert found["val"]["n"] == len(rows) == 3 * (12 + 5)  # train/ and val/ alike
    assert len({row["path"] for row in rows}) == len(rows)
    assert sum(row["n"] for row in found["runs"]) == len(rows)
    correct = sum(row["label"] == row["predicted"] for row in rows)
    assert found["val"]["correct"] == correct == sum(row["correct"] for row in found["runs"])
    assert found["val"]["accuracy_ci95"] == pytest.approx(wilson(correct, len(rows)))
    for row in found["runs"]:
        measured = set(read_evaluated_run(str(folds / row["folder"])).paths)
        trained = pq.read_table(folds / row["folder"] / "manifest.parquet").to_pylist()
        assert not measured & {sample["path"] for sample in trained if sample["split"] == "train"}


@pytest.mark.slow
def test_the_interval_over_folds_knows_that_they_share_training_images(folds: Path) -> None:
    spread = summary(folds)["spread"]["accuracy"]
    accuracies = [row["accuracy"] for row in summary(folds)["runs"]]
    # Nadeau and Bengio: the variance times 1/k + measured/trained, here 1/2 + 1
    reach = student_t(0.975, 1) * np.std(accuracies, ddof=1) * math.sqrt(1 / 2 + 1)
    assert spread["ci95"] == pytest.approx(clipped(np.mean(accuracies), reach))


@pytest.mark.slow
def test_folders_of_folds_are_compared_as_one_run(folds: Path, capsys) -> None:
    measured = read_evaluated_run(str(folds))
    assert len(measured.keys) == 51
    assert measured.strategy == "frozen_head"


# ------------------------------------------------------------------------------------------------- continued


@pytest.mark.slow
def test_started_again_only_what_is_unfinished_is_run(seeds: Path, tiny_data, bank, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    shutil.copytree(seeds, out)
    (out / "seed_1" / "summary.json").unlink()  # as if it had been killed while it wrote
    (out / "summary.json").unlink()
    config = repeated(tiny_data, out, bank, seeds=3)  # and one more
    with pytest.raises(InputError, match=rf"{out}.*resume"):
        run(config)
    capsys.readouterr()
    run(replace(config, train=replace(config.train, resume="auto")))
    said = capsys.readouterr().out
    assert "seed_0: " not in said
    assert "seed_1: 2 of 3" in said
    assert "seed_2: 3 of 3" in said
    found = summary(out)
    assert found["runs"][:1] == summary(seeds)["runs"][:1]
    assert [row["folder"] for row in found["runs"]] == ["seed_0", "seed_1", "seed_2"]


def test_another_recipe_is_not_mixed_in(seeds: Path, tiny_data, bank) -> None:
    config = repeated(tiny_data, seeds, bank, seeds=2, resume="auto")
    with pytest.raises(InputError, match=r"probe\.l2 7\.0 \(was 1\.0\)"):
        run(replace(config, probe=replace(config.probe, l2=7.0)))


def test_a_single_run_is_not_turned_into_several(seeds: Path, tiny_data, bank) -> None:
    with pytest.raises(InputError, match=rf"{seeds / 'seed_0'} .*single run"):
        run(repeated(tiny_data, seeds / "seed_0", bank, seeds=2, resume="auto"))


def test_a_single_run_does_not_continue_several(seeds: Path, tiny_data, bank, tmp_path) -> None:
    shutil.copytree(seeds, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(InputError, match=str(tmp_path / "run")):
        run(repeated(tiny_data, tmp_path / "run", bank, resume="auto"))


def test_a_mistake_leaves_nothing_behind(tmp_path, bank) -> None:
    with pytest.raises(InputError, match="nowhere"):
        run(repeated(tmp_path / "nowhere", tmp_path / "run", bank, seeds=2))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_that_the_first_run_finds_leaves_nothing_behind(tiny_data, tmp_path, bank) -> None:
    config = repeated(tiny_data, tmp_path / "run", bank, seeds=2)
    with pytest.raises(InputError, match=r"seed_0: .*no_such"):
        run(replace(config, model=replace(config.model, weights=str(tmp_path / "no_such.safetensors"))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on_bad_file", ["refuse", "skip"])
def test_a_fold_without_a_class_is_found_before_the_first_run(on_bad_file: str, image_folder, tmp_path, bank) -> None:
    root = image_folder(train=8)
    for number in range(2, 8):
        next((root / "blue_waves").glob(f"*_{number:02d}.*")).unlink()
    config = repeated(root, tmp_path / "run", bank, folds=4)
    with pytest.raises(InputError, match=r"class '\w+'.* train "):
        run(replace(config, data=replace(config.data, on_bad_file=on_bad_file)))
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_write_the_same_runs(seeds: Path, tiny_data, bank, tmp_path) -> None:
    shutil.copytree(seeds, tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        about = {"pid": other.pid, "host": socket.gethostname(), "since": psutil.Process(other.pid).create_time()}
        (tmp_path / "run" / RUNNING).write_text(json.dumps(about))
        with pytest.raises(InputError, match=f"process {other.pid} "):
            run(repeated(tiny_data, tmp_path / "run", bank, seeds=2, resume="auto"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.seeds", "0"], r"train\.seeds .*0.* 1"),
        (["--train.folds", "1"], r"train\.folds .*1.* 2"),
        (["--train.folds", "3", "--train.seeds", "2"], r"train\.(seeds|folds).*train\.(folds|seeds)"),
        (
            ["--train.folds", "3", "--data.folds", "3", "--data.split", "stratified"],
            r"(data|train)\.folds.*(train|data)\.folds",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_train(["--data.root", "x", *options])


def test_a_checkpoint_by_name_is_refused(tiny_data, bank, tmp_path) -> None:
    with pytest.raises(InputError, match=r"train\.resume some/step_4"):
        run(repeated(tiny_data, tmp_path / "run", bank, seeds=2, resume="some/step_4"))


@pytest.mark.slow
def test_stopped_in_the_second_seed_of_fine_tuning_it_continues_there(tiny_data, tmp_path) -> None:
    config = small(tiny_data, tmp_path / "run", train={"epochs": 1, "seeds": 2, "resume": "auto"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    stopped = stopped_at(1, tmp_path / "run" / "seed_1" / "metrics.jsonl", tmp_path / "config.yaml")
    assert stopped.returncode == 143, stopped.stderr
    for fragment in ("seed_1: ", "SIGTERM", f"--out {tmp_path / 'run'} --train.resume auto"):
        assert fragment in stopped.stderr
    assert (tmp_path / "run" / "seed_0" / "summary.json").exists()
    assert not (tmp_path / "run" / "summary.json").exists()
    found = summary(run(config))
    assert found["strategy"] == "fine_tune"
    assert [row["seed"] for row in found["runs"]] == [0, 1]
    assert found["runs"][0]["loss"] != found["runs"][1]["loss"]


# ------------------------------------------------------------------------------------------------- one per GPU


@pytest.fixture
def configs(tiny_data, bank, tmp_path) -> dict[str, RunConfig]:
    (tmp_path / "run").mkdir()
    return configs_of_repeats(repeated(tiny_data, tmp_path / "run", bank, seeds=2), tmp_path / "run")


@pytest.mark.slow
def test_runs_on_gpus_of_their_own_end_as_they_would_alone(configs, seeds: Path, tmp_path, capsys) -> None:
    """There is no GPU here: the processes, their environment and their output are what is looked at."""
    run_on_gpus(configs, ["4", "7"])
    said = capsys.readouterr().out
    assert "seed_0: on GPU 4" in said
    assert "seed_1: on GPU 7" in said
    assert "seed_1: accuracy" in said
    assert summary(tmp_path / "run" / "seed_1")["model_sha256"] == summary(seeds / "seed_1")["model_sha256"]


@pytest.mark.slow
def test_after_one_that_failed_none_is_begun_and_it_is_named(configs, tmp_path, capsys) -> None:
    broken = {
        "seed_0": replace(configs["seed_0"], data=replace(configs["seed_0"].data, root=str(tmp_path / "nowhere")))
    }
    with pytest.raises(InputError, match=r"^seed_0 .*\b2\b.*nowhere"):
        run_on_gpus(broken | {"seed_1": configs["seed_1"]}, ["0"])
    assert "seed_1" not in capsys.readouterr().out
