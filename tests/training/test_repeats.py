"""Several runs in one: seeds and folds, continued where they were left, summed up, and one per GPU."""

import json
import math
import re
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
from support.runs import exit_code, small, stopped_at, summary

from headstart import InputError
from headstart.cli.train import parse_train
from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.evaluation.statistics import student_t, wilson
from headstart.report.comparison import read_evaluated_run
from headstart.report.repeats import repeats_in_words
from headstart.runs.lock import RUNNING
from headstart.runs.summary import RepeatsSummary, Summary
from headstart.training.one_per_gpu import run_on_gpus
from headstart.training.repeats import configs_of_repeats
from headstart.training.run import run
from headstart.training.summarize_repeats import Repeat, summarize_repeats

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
    files = ["README.md", "config.yaml", "report.html", "seed_0", "seed_1", "summary.json"]
    assert sorted(path.name for path in seeds.iterdir()) == files
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


def test_the_table_of_runs_has_a_best_epoch_only_if_there_are_several(seeds: Path, tmp_path, capsys) -> None:
    from headstart.cli.train import _print_repeats

    _print_repeats(seeds)
    assert "best epoch" not in capsys.readouterr().out
    summary = json.loads((seeds / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"epochs": 2}))
    _print_repeats(tmp_path)
    assert "best epoch" in capsys.readouterr().out


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
    assert summary(folds)["backbone"] == "resnet18"


# ------------------------------------------------------------------------------------------------- pages


def text_of(page: Path) -> str:
    """Without tags, each run of white space as one space."""
    return " ".join(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", page.read_text(), flags=re.S).split())


def test_the_report_of_folds_has_each_run_and_the_pooled_classes(folds: Path) -> None:
    found, page = summary(folds), (folds / "report.html").read_text()
    text = text_of(folds / "report.html")
    low, high = found["val"]["accuracy_ci95"]
    for fragment in (
        f"{found['val']['accuracy']:.1%}",
        f"{found['val']['correct']} of 51",
        f"[{low:.1%}, {high:.1%}]",
        f"headstart train --config {folds}/config.yaml --train.folds 0",
    ):
        assert fragment in text
    for one in found["runs"]:
        assert f'href="{one["folder"]}/report.html"' in page
        assert f"{one['correct']} of {one['n']}" in text
    matrix = re.search(r'<table class="matrix">(.*?)</table>', page, flags=re.S)
    assert matrix is not None
    assert (
        np.array(re.findall(r"<strong>(\d+)</strong>", matrix[1]), dtype=int).reshape(3, 3).tolist()
        == (found["val"]["confusion_matrix"])
    )
    card = (folds / "README.md").read_text()
    for name, one in found["val"]["per_class"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name.replace('_', chr(92) + '_')} |"))
        assert f"| 17 | {one['recall']:.4f} |" in row


def test_the_report_of_seeds_names_the_run_to_use_and_has_no_interval_of_a_class(seeds: Path) -> None:
    text = text_of(seeds / "report.html")
    for fragment in ("2 seeds", "mean accuracy", "Use the first one, seed_0"):
        assert fragment in text
    assert "Wilson 95%" not in text
    assert "seed_0" in (seeds / "README.md").read_text()


def test_the_report_of_repeated_runs_is_written_again_on_request(seeds: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / seeds.name
    shutil.copytree(seeds, copy)
    (copy / "report.html").unlink()
    assert exit_code("report", copy) == 0
    assert f"{copy}/report.html" in capsys.readouterr().out
    assert text_of(copy / "report.html") == text_of(seeds / "report.html")
    assert exit_code("report", copy, "--data", tmp_path) == 2
    assert f"{copy}/seed_0" in capsys.readouterr().err
    path = copy / "seed_1" / "summary.json"
    path.write_text(path.read_text().replace('"confusion_matrix"', '"matrix"'))
    assert exit_code("report", copy) == 2
    assert "confusion matrix" in capsys.readouterr().err


def test_purpose_and_author_of_repeated_runs_are_kept_and_shown_with_the_date(seeds: Path, tmp_path, capsys) -> None:
    copy = tmp_path / seeds.name
    shutil.copytree(seeds, copy)
    assert "--purpose TEXT --author TEXT" in text_of(copy / "report.html")
    date = max(json.loads((copy / f"seed_{seed}" / "summary.json").read_text())["finished"] for seed in (0, 1))[:10]
    assert exit_code("report", copy, "--purpose", " Counts bees ", "--author", "A | B") == 0
    assert re.search(r"report\.html: \d+ KiB", capsys.readouterr().out)
    for _ in range(2):
        assert json.loads((copy / "about.json").read_text()) == {"purpose": "Counts bees", "author": "A | B"}
        assert f"Purpose Counts bees Author A | B Date {date}" in text_of(copy / "report.html")
        assert f"- Purpose: Counts bees\n- Author: A \\| B\n- Date: {date}\n" in (copy / "README.md").read_text()
        assert exit_code("report", copy) == 0
    assert "--purpose TEXT" not in text_of(copy / "report.html")
    before = (copy / "report.html").read_bytes()
    (copy / "about.json").write_text('{"purpose": 3}')
    assert exit_code("report", copy) == 2
    assert "about.json" in capsys.readouterr().err
    assert (copy / "report.html").read_bytes() == before


def test_the_whole_configuration_is_folded_in_the_report_of_repeated_runs(seeds: Path) -> None:
    assert '<details class="print"><summary>The whole configuration' in (seeds / "report.html").read_text()


def test_only_the_end_of_all_runs_suggests_what_to_do_next(tiny_data, bank, tmp_path, capsys) -> None:
    config = repeated(tiny_data, tmp_path / "run", bank, folds=2)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert exit_code("train", "--config", tmp_path / "config.yaml") == 0
    printed = capsys.readouterr().out
    assert printed.count("next:") == printed.count("report: ") == 1
    end = printed[printed.index("report: ") :]
    assert f"headstart open {tmp_path}/run" in end
    command = next(line for line in end.splitlines() if "headstart train" in line)
    again = parse_train(command.split()[2:])
    assert (again.train.folds, again.data.root) == (0, str(tiny_data))
    assert not Path(again.out).exists()


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
    weights = tmp_path / "text.safetensors"
    weights.write_text("not weights")
    with pytest.raises(InputError, match=r"seed_0: .*text\.safetensors"):
        run(replace(config, model=replace(config.model, weights=str(weights))))
    assert list(tmp_path.iterdir()) == [weights]


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
    for fragment in ("seed_1: ", "SIGTERM", f": headstart resume {tmp_path / 'run'}\n"):
        assert fragment in stopped.stderr
    assert (tmp_path / "run" / "seed_0" / "summary.json").exists()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert exit_code("resume", tmp_path / "run") == 0
    found = summary(tmp_path / "run")
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
