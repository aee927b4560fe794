"""Runs on the feature bank: the same run folder, the same logits as recomputing, probe then tune."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support.processes import Started
from support.processes import headstart as headstart_command
from support.runs import RUN_FILES, lines, losses, small, stopped_at, summary
from torchvision.models import resnet18

import headstart
from headstart import InputError
from headstart.backbones import RESNET18
from headstart.cli.main import main
from headstart.cli.train import parse_train
from headstart.config import ProbeConfig, RunConfig, StrategyConfig
from headstart.config_io import to_yaml
from headstart.data.decode import decode
from headstart.data.transforms import Preprocess
from headstart.evaluation.statistics import paired
from headstart.features import nearest_neighbours
from headstart.model.forward import FrozenNetwork
from headstart.model.golden_inputs import DRAWINGS
from headstart.model.model_file import load_model
from headstart.model.weights import load_weights
from headstart.runtime import progress
from headstart.training.run import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bank")


def on_bank(root: Path, out: Path, bank: Path, *, strategy: str = "frozen_head", **sections: dict) -> RunConfig:
    sections["runtime"] = {"bank": str(bank), **sections.get("runtime", {})}
    config = small(root, out, strategy=strategy, **sections)
    return replace(config, strategy=replace(config.strategy, features="bank"))


@pytest.fixture(scope="module")
def probed(tiny_data, bank, tmp_path_factory) -> Path:
    return run(on_bank(tiny_data, tmp_path_factory.mktemp("runs") / "probed", bank))


def recomputed_logits(folder: Path, root: Path) -> tuple[np.ndarray, list[dict]]:
    """The validation logits of a plain torchvision network with the run's file, and the rows of its table."""
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    tensors = load_file(folder / "model.safetensors")
    model = resnet18(num_classes=len(tensors["fc.bias"]))
    model.load_state_dict(tensors, strict=True)
    spec = Preprocess(image_size=32, resize_size=37)
    transforms = torch.stack([spec.resize_and_crop(decode((root / row["path"]).read_bytes())) for row in rows])
    with torch.inference_mode():
        return model.eval()(spec.normalize(transforms)).numpy(), rows


def test_the_run_folder_is_that_of_every_run(probed) -> None:
    assert {path.name for path in probed.iterdir()} == RUN_FILES
    found = summary(probed)
    assert found["strategy"] == "frozen_head"
    assert found["val"]["n"] == 15
    assert found["probe"]["converged"]
    assert found["probe"]["gradient_norm"] <= 1e-8
    assert found["features"]["rows"] == 51
    assert [row["cv_loss"] for row in lines(probed) if "l2" in row]
    assert headstart.load(probed).classes == ("blue_waves", "green_stripes", "red_checks")


def test_the_logits_are_those_of_the_whole_network_with_the_same_head(probed, tiny_data) -> None:
    logits, rows = recomputed_logits(probed, tiny_data)
    stored = np.array([row["probabilities"] for row in rows])
    expected = np.exp(logits.astype(np.float64))
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.abs(stored - expected).max() < 1e-5
    # up to the constant that a softmax forgets, the probabilities are the logits
    ours = np.log(stored) - np.log(stored).mean(axis=1, keepdims=True)
    assert np.abs(ours - (logits - logits.mean(axis=1, keepdims=True))).max() < 1e-5


def test_headstart_evaluate_agrees_with_the_run(probed, tiny_data, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(probed), "--data", str(tiny_data), "--out", str(tmp_path / "again.json")])
    assert end.value.code == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == summary(probed)["val"]  # to the last digit


@pytest.mark.slow
def test_killed_while_it_wrote_it_continues_to_the_same_file_without_a_call_of_the_backbone(
    probed, tiny_data, bank, tmp_path, monkeypatch, capsys
) -> None:
    """Keys that an exact head does not look at change nothing and are printed."""
    folder = tmp_path / "run"
    shutil.copytree(probed, folder)
    for name in ("summary.json", "model.safetensors", "predictions.parquet"):
        (folder / name).unlink()
    config = on_bank(tiny_data, folder, bank, train={"epochs": 99}, data={"vflip": True})
    with pytest.raises(InputError, match=re.escape(str(folder))):
        run(config)

    def never(module: object, inputs: tuple[torch.Tensor, ...], *_: object) -> None:
        if len(inputs[0]) != len(DRAWINGS):  # the golden inputs of the model file are computed again
            raise AssertionError("the backbone was called")

    monkeypatch.setattr(FrozenNetwork, "__call__", never)
    handle = torch.nn.modules.module.register_module_forward_hook(never)
    try:
        run(replace(config, train=replace(config.train, resume="auto")))
    finally:
        handle.remove()
    assert (folder / "model.safetensors").read_bytes() == (probed / "model.safetensors").read_bytes()
    assert [line["step"] for line in lines(folder)] == [line["step"] for line in lines(probed)]
    assert summary(folder)["features"]["computed"] == 0
    (ignored,) = [line for line in capsys.readouterr().out.splitlines() if "no effect" in line]
    for key in ("data.min_crop_scale", "train.epochs", "lbfgs"):
        assert key in ignored


def test_the_hook_of_the_test_above_would_notice(tiny_data, tmp_path, monkeypatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the backbone was called")

    monkeypatch.setattr(FrozenNetwork, "__call__", never)
    with pytest.raises(AssertionError, match="the backbone was called"):
        run(on_bank(tiny_data, tmp_path / "run", tmp_path / "bank"))


def test_the_backbone_in_the_file_is_the_pretrained_one_to_the_bit(probed) -> None:
    tensors = load_file(probed / "model.safetensors")
    before = load_weights("bundled", RESNET18).tensors
    assert before is not None
    for name, value in before.items():
        assert torch.equal(tensors[name], value), name


@pytest.mark.slow
def test_minibatches_on_the_bank_give_the_losses_of_the_loop_that_recomputes(tiny_data, bank, tmp_path) -> None:
    changes: dict = {
        "data": {"min_crop_scale": 1.0, "hflip": False},
        "model": {"head_init": "normal"},
        "optim": {"lr": 0.01, "schedule": "step", "step_epochs": 1, "backbone_lr": None},
    }
    loop = run(small(tiny_data, tmp_path / "loop", strategy="frozen_head", **changes))
    solved = run(on_bank(tiny_data, tmp_path / "bank_run", bank, probe=ProbeConfig(solver="sgd"), **changes))
    assert len(losses(loop)) == 9
    assert losses(solved) == pytest.approx(losses(loop), abs=1e-5)
    of_epochs = [
        [(row["epoch"], row["val_correct"]) for row in lines(folder) if "epoch" in row] for folder in (loop, solved)
    ]
    assert of_epochs[0] == of_epochs[1]
    assert summary(loop)["best_epoch"] == summary(solved)["best_epoch"]


@pytest.mark.slow
def test_full_batches_begin_at_the_loss_of_guessing_and_never_rise(tiny_data, bank, tmp_path) -> None:
    config = on_bank(
        tiny_data,
        tmp_path / "run",
        bank,
        probe=ProbeConfig(solver="full_batch", steps=60),
        optim={"lr": 0.001, "momentum": 0.0, "schedule": "constant"},
    )
    found = losses(run(config))
    assert len(found) == 60
    assert found[0] == pytest.approx(math.log(3), abs=1e-6)
    assert all(later < before for before, later in pairwise(found))


@pytest.mark.parametrize(
    ("solver", "steps", "what"),
    [
        ("sgd", 4, "loss"),
        ("sgd", 1, "validation loss"),
        ("full_batch", 4, "loss"),
        ("full_batch", 1, "validation loss"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_and_nothing_is_written(
    solver, steps, what, tiny_data, bank, tmp_path
) -> None:
    config = on_bank(
        tiny_data,
        tmp_path / "run",
        bank,
        probe=ProbeConfig(solver=solver, steps=steps),
        optim={"lr": 3e38, "momentum": 0.0},
        train={"epochs": 1, "batch_size": 36 // steps},
    )
    with pytest.raises(InputError, match=rf"the {what} .*(nan|inf) .*step \d.*optim\.lr \(now 3e\+38\)"):
        run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_augmented_images_train_and_are_never_evaluated(tiny_data, bank, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(nearest_neighbours, "NEIGHBOUR_ROWS", 10)
    found = summary(run(on_bank(tiny_data, tmp_path / "run", bank, probe=ProbeConfig(augmented_copies=2, l2=10.0))))
    assert found["features"]["rows"] == 36 * 3 + 15
    assert found["val"]["n"] == 15
    assert found["probe"]["l2"] == 10.0
    assert (
        found["probe"]["knn_images"] == 9
    )  # neighbours are looked for among every fourth of the 36 that are not augmented
    assert "9 of the 36" in capsys.readouterr().out


def test_the_extraction_of_features_reports_its_progress(tiny_data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    run(on_bank(tiny_data, tmp_path / "run", tmp_path / "bank", data={"limit": 6}))
    out = capsys.readouterr().out
    assert re.search(r"features .*\b21/21\b.* 0 s left", out)
    assert "data.limit 6" in out
    assert summary(tmp_path / "run")["train"] == {"n": 6, "limit": 6}


def test_a_checkpoint_to_resume_from_is_refused_with_the_way_out(tiny_data, bank, tmp_path) -> None:
    config = on_bank(tiny_data, tmp_path / "run", bank, train={"resume": "some/where"})
    with pytest.raises(InputError, match="features recompute"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_recomputing_does_not_go_with_probe_then_tune() -> None:
    with pytest.raises(InputError, match=r"strategy\.features"):
        RunConfig(strategy=StrategyConfig(name="probe_then_tune", features="recompute"))


# ---- probe, then tune


@pytest.fixture(scope="module")
def tuned(tiny_data, bank, tmp_path_factory) -> Path:
    config = on_bank(
        tiny_data,
        tmp_path_factory.mktemp("runs") / "tuned",
        bank,
        strategy="probe_then_tune",
        optim={"lr": 1e-3, "backbone_lr": 1e-3},
        probe=ProbeConfig(l2=3000.0),
    )
    return headstart.train(config).path


@pytest.mark.slow
def test_the_function_is_not_replaced_by_the_module_of_its_name(tuned) -> None:
    """A second call once met the module headstart.train in its place. The run is finished: nothing to do."""
    config = parse_train(["--config", str(tuned / "config.yaml"), "--train.resume", "auto"])
    assert headstart.train(config).path == tuned


@pytest.mark.slow
def test_tuning_starts_from_the_probe(tuned, tiny_data, bank, tmp_path) -> None:
    alone = run(on_bank(tiny_data, tmp_path / "probe", bank, probe=ProbeConfig(l2=3000.0)))
    first = lines(tuned)[0]
    assert (first["step"], first["epoch"]) == (0, 0)
    assert first["val_correct"] == summary(alone)["val"]["correct"]
    assert first["val_loss"] == pytest.approx(summary(alone)["val"]["loss"], abs=1e-5)


@pytest.mark.slow
def test_the_better_one_of_probe_and_tuned_is_kept(tuned, tiny_data) -> None:
    rows = [row for row in lines(tuned) if "epoch" in row]
    best = max(rows, key=lambda row: (row["val_correct"], -row["val_loss"]))
    found = summary(tuned)
    assert found["best_epoch"] == best["epoch"]
    assert found["val"]["correct"] == best["val_correct"]
    assert found["probe"]["tuning_kept"] == (best["epoch"] > 0)
    assert "right" not in found["probe"]
    logits, table = recomputed_logits(tuned, tiny_data)
    assert (
        sum(found["classes"][code] == row["label"] for code, row in zip(logits.argmax(1), table, strict=True))
        == (best["val_correct"])
    )


@pytest.mark.slow
def test_where_tuning_does_harm_the_probe_is_kept(tiny_data, bank, tmp_path) -> None:
    config = on_bank(
        tiny_data,
        tmp_path / "run",
        bank,
        strategy="probe_then_tune",
        optim={"lr": 0.3, "backbone_lr": 0.3},
        train={"epochs": 1},
        probe=ProbeConfig(l2=100.0),
    )
    folder = run(config)
    assert summary(folder)["best_epoch"] == 0
    assert summary(folder)["probe"]["tuning_kept"] is False
    model, _ = load_model(folder / "model.safetensors")
    before = load_weights("bundled", RESNET18).tensors
    assert before is not None
    assert torch.equal(model.conv1.weight, before["conv1.weight"])


def test_two_classifiers_are_compared_on_the_images_they_differ_on() -> None:
    same = [True] * 80 + [False] * 5
    result = paired([*same, *[False] * 12, *[True] * 3], [*same, *[True] * 12, *[False] * 3])
    assert (result.gained, result.lost) == (12, 3)
    assert result.difference == pytest.approx(0.09)
    assert result.p_value == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    assert result.beyond_chance
    assert 0 < result.ci95[0] < 0.09 < result.ci95[1] < 0.18
    assert not paired([*same, False], [*same, True]).beyond_chance
    assert paired(same, same).p_value == 1.0


# ---- the command


@pytest.mark.slow
def test_the_command_keeps_its_bank_in_the_cache_folder_and_imports_no_torchvision(tiny_data, tmp_path) -> None:
    config = on_bank(tiny_data, tmp_path / "run", tmp_path / "unused")
    config = replace(config, runtime=replace(config.runtime, bank=""))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    script = (
        "import sys; from headstart.cli import main as cli\ntry: cli.main()\n"
        "finally: print({'torchvision', 'datasets', 'evaluate'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "train", "--config", str(tmp_path / "config.yaml")],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("set()")
    assert len(list((tmp_path / "cache" / "headstart" / "bank").glob("*/key.json"))) == 1


@pytest.mark.slow
def test_stopped_while_computing_features_it_exits_143_and_its_folder_can_be_resumed(image_folder, tmp_path) -> None:
    folder = image_folder(train=100, val=20)
    config = on_bank(folder, tmp_path / "run", tmp_path / "bank", data={"num_workers": 1})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    process = Started(headstart_command, "train", "--config", str(tmp_path / "config.yaml"), cwd=tmp_path)
    process.wait_until(lambda: list((tmp_path / "bank").glob("*/*.safetensors")))
    process.send_signal(signal.SIGTERM)
    done = process.finish()
    assert done.returncode == 143, done.stderr
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "bank") in done.stderr
    assert "headstart resume" in done.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"config.yaml", "checkpoints"}
    again = run(replace(config, train=replace(config.train, resume="auto")))
    assert 0 < summary(again)["features"]["computed"] < summary(again)["features"]["rows"]


@pytest.mark.slow
def test_stopped_while_the_probe_is_evaluated_it_continues_to_the_same_bits(tiny_data, tuned, bank, tmp_path) -> None:
    written = parse_train(["--config", str(tuned / "config.yaml")])
    config = replace(written, out=str(tmp_path / "run"), data=replace(written.data, cache="off"))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    stopped = stopped_at(20, tiny_data, tmp_path / "config.yaml")  # 12 are drawn first
    assert stopped.returncode == 143, stopped.stderr
    assert "step 0 of 9" in stopped.stderr
    run(replace(config, train=replace(config.train, resume="auto")))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
