"""Folders with few images, and runs of one epoch: the batch size and the warm-up fit what is there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.images import draw_folder
from support.processes import torchrun
from support.runs import losses, small, steps, stopped_at, summary

from headstart import InputError
from headstart.config import OptimConfig, RunConfig, TrainConfig
from headstart.config_io import load_config, shipped_configs, to_yaml
from headstart.features.cross_validation import NEVER_HELD_OUT, cross_validate
from headstart.recipe.optimizer import lr_schedule
from headstart.training.run import run
from headstart.training.small_data import describe_batch_size, fit_batch_size


@given(
    num_images=st.integers(1, 80),
    num_processes=st.integers(1, 8),
    accumulation=st.integers(1, 8),
    multiple=st.integers(1, 8),
)
def test_a_batch_never_exceeds_the_images_and_divides_evenly(
    num_images: int, num_processes: int, accumulation: int, multiple: int
) -> None:
    size = num_processes * accumulation * multiple
    config = RunConfig(train=TrainConfig(batch_size=size, accumulation=accumulation))
    if size > num_images and num_images < num_processes:
        with pytest.raises(InputError, match=rf"\b{num_images}\b.*\b{num_processes}\b"):
            fit_batch_size(config, num_images=num_images, num_processes=num_processes)
        return
    fitted = fit_batch_size(config, num_images=num_images, num_processes=num_processes)
    train = fitted.train
    if size <= num_images:
        assert fitted is config
        assert not describe_batch_size(config, fitted, num_images=num_images)
        return
    parts = num_processes * train.accumulation
    assert num_processes <= train.batch_size <= num_images
    assert train.batch_size % parts == 0
    assert train.batch_size + parts > num_images
    assert 1 <= train.accumulation <= accumulation
    if train.accumulation > 1:  # otherwise BatchNorm could get a single image
        assert train.batch_size >= 2 * parts
    described = describe_batch_size(config, fitted, num_images=num_images)
    for value in (train.batch_size, size, num_images):
        assert str(value) in described


@given(
    warmup_epochs=st.floats(0, 20),
    epochs=st.integers(1, 10),
    num_images=st.integers(1, 500),
    batch_size=st.integers(1, 64),
)
def test_the_warm_up_takes_at_most_half_of_any_run(
    warmup_epochs: float, epochs: int, num_images: int, batch_size: int
) -> None:
    size = min(batch_size, num_images)
    total = -(-epochs * num_images // size)
    schedule = lr_schedule(
        OptimConfig(warmup_epochs=warmup_epochs), total_steps=total, steps_per_epoch=num_images / size
    )
    assert schedule(min(round(warmup_epochs * num_images / size), total // 2)) == 1
    assert all(0 < schedule(step) <= 1 for step in range(total))


def one_image_per_class(root: Path) -> Path:
    return draw_folder(root, train=1, val=1, classes=("blue", "red"))


def one_class_of_one_image(root: Path) -> Path:
    """19 training images, so that the default batch of 32 is not full."""
    draw_folder(root, train=9, val=1)
    for extra in sorted((root / "train" / "red_checks").iterdir())[1:]:
        extra.unlink()
    return root


@pytest.fixture(scope="module", params=[one_image_per_class, one_class_of_one_image])
def folder(request, tmp_path_factory) -> Path:
    return request.param(tmp_path_factory.mktemp("few") / request.param.__name__)


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bank")


def shipped(name: str, root: Path, out: Path, bank: Path, **keys: str) -> RunConfig:
    weights = "bundled" if load_config([name]).model.backbone == "resnet18" else "none"
    given = {"data.root": str(root), "out": str(out), "model.weights": weights, "runtime.bank": str(bank)}
    given |= {"data.image_size": "32", "data.resize_size": "37", "data.num_workers": "0", "runtime.threads": "1"}
    return load_config([name], given | keys)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_trains_one_epoch_on_few_images(name, folder, bank, tmp_path, caplog) -> None:
    config = shipped(name, folder, tmp_path / "run", bank, **{"train.epochs": "1"})
    if config.probe.solver == "full_batch":
        config = replace(config, probe=replace(config.probe, steps=20))
    found = summary(run(config))
    count = len(list((folder / "train").rglob("*.*")))
    assert found["train"]["n"] == count
    warned = [record.getMessage() for record in caplog.records if "train.batch_size" in record.getMessage()]
    assert len(warned) == (config.trains_by_epochs and config.train.batch_size > count)
    # the written configuration holds what was used, and the same command finds nothing left to do
    written = load_config([tmp_path / "run" / "config.yaml"])
    assert written.train.batch_size == (count if warned else config.train.batch_size)
    assert run(replace(config, train=replace(config.train, resume="auto"))) == tmp_path / "run"


@pytest.mark.slow
def test_another_batch_size_than_that_of_a_finished_run_is_refused(bank, tmp_path) -> None:
    folder = one_image_per_class(tmp_path / "images")
    config = shipped("tutorial_frozen_head", folder, tmp_path / "run", bank, **{"train.epochs": "1"})
    run(config)
    with pytest.raises(InputError, match=r"train\.batch_size 1 "):
        run(replace(config, train=replace(config.train, resume="auto", batch_size=1)))


@pytest.mark.slow
def test_a_stopped_run_with_a_reduced_batch_and_warm_up_continues_to_the_same_bits(tmp_path, capsys) -> None:
    folder = one_class_of_one_image(tmp_path / "images")
    changes: dict = {
        "data": {"cache": "off"},
        "train": {"epochs": 2, "batch_size": 32, "accumulation": 4},
        "optim": {"warmup_epochs": 5},
    }
    whole = run(small(folder, tmp_path / "whole", **changes))
    assert "optim.warmup_epochs 5" in capsys.readouterr().out
    assert len(losses(whole)) == 3  # of 16 images: 4 passes of 4
    rates = [row["lr"]["head_decay"] for row in steps(whole)]
    assert rates[0] == pytest.approx(0.01)  # half of the peak: one step of warm-up
    assert rates[1] == pytest.approx(0.02)
    config = small(folder, tmp_path / "parts", **changes)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    stopped = stopped_at(12 + 17, folder / "train", tmp_path / "config.yaml")  # 12 are drawn first
    assert stopped.returncode == 143, stopped.stderr
    run(replace(config, train=replace(config.train, resume="auto")))
    for name in ("model.safetensors", "config.yaml"):
        before, after = ((tmp_path / part / name).read_bytes() for part in ("whole", "parts"))
        assert name == "config.yaml" or before == after, name
    assert losses(tmp_path / "parts") == losses(whole)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_on_three_images_and_refuse_to_share_one_batch_of_less(tmp_path) -> None:
    folder = draw_folder(tmp_path / "images", train=2, val=1, classes=("blue", "red"))
    next((folder / "train" / "red").iterdir()).unlink()
    config = small(folder, tmp_path / "run", train={"epochs": 1, "batch_size": 32}, data={"image_size": 64})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    done = torchrun(2, "train", "--config", str(tmp_path / "config.yaml"), cwd=tmp_path).finish()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train.batch_size is 2 instead of 32") == 1
    assert summary(tmp_path / "run")["world_size"] == 2


def test_an_image_that_is_alone_in_its_class_trains_every_head_of_the_cross_validation() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 6 + [1] * 6 + [2])
    features = rng.normal(size=(13, 4)) + 3 * np.eye(4)[labels]
    folds = np.array([0, 1, 2] * 4 + [NEVER_HELD_OUT])
    found = cross_validate(features.astype(np.float32), labels, folds, num_classes=3, counted=folds != NEVER_HELD_OUT)
    assert found.folds == 3
    assert found.labels.tolist() == labels[:12].tolist()
    # every head knows the third class: without an image of it, its logit would fall without end at weak penalties
    assert np.abs(found.logits[:, 2]).max() < 100
