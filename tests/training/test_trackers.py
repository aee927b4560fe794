"""Experiment trackers: what they are told, that a continued run stays one run, and that none can end a run."""

import importlib.util
import json
import os
import signal
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from accelerate import Accelerator, tracking
from accelerate.tracking import GeneralTracker, register_tracker_class
from support.runs import small

from headstart.config import RuntimeConfig
from headstart.errors import InputError, Stopped
from headstart.runs.summary import Summary
from headstart.training import trackers as trackers_module
from headstart.training.run import run
from headstart.training.trackers import RUN_IDS, Trackers, installed_trackers


class Fake(GeneralTracker):
    """Writes down what it is told; raises in the method `fails`; calls `during` with each log."""

    name = "fake"
    requires_logging_directory = False
    main_process_only = True
    fails = ""
    during = staticmethod(lambda values, step: None)
    told: list = []  # noqa: RUF012

    def __init__(self, run_name, **kwargs):
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self):
        return self

    def _hear(self, what, *values):
        if type(self).fails == what:
            raise ConnectionError(f"no {what} today\nsecond line")
        type(self).told.append((what, *values))

    def start(self):
        self._hear("start", self.run_name)

    def store_init_configuration(self, values):
        self._hear("config", values)

    def log(self, values, step=None, **kwargs):
        self._hear("log", values, step)
        type(self).during(values, step)

    def log_images(self, values, step=None, **kwargs):
        self._hear("images", {name: [image.size for image in images] for name, images in values.items()}, step)

    def finish(self):
        self._hear("finish")


@pytest.fixture
def fake(monkeypatch):
    """Registered with Accelerate as anyone's own tracker would be; fake.told: what it heard."""
    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", tracking.LOGGER_TYPE_TO_CLASS)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "fake", None)
    tracking.LOGGER_TYPE_TO_CLASS.pop("fake")
    register_tracker_class(Fake)
    monkeypatch.setattr(Fake, "told", [])
    monkeypatch.setattr(Fake, "fails", "")
    monkeypatch.setattr(Fake, "during", staticmethod(lambda values, step: None))
    yield Fake
    tracking.LOGGER_TYPE_TO_CLASS.pop("fake", None)


def config_of(data, out, trackers, **sections):
    return small(data, out, strategy="frozen_head", runtime={"trackers": trackers}, **sections)


def events(folder):
    """Scalars of a TensorBoard folder as {tag: [(step, value)]}, and the tags of its images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    tags = read.Tags()
    scalars = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, tags["images"]


@pytest.mark.slow
def test_a_tracker_hears_of_configuration_images_metrics_and_the_end(fake, tiny_data, tmp_path):
    out = run(config_of(tiny_data, tmp_path / "run", "fake"))
    kinds = [what for what, *_ in fake.told]
    assert kinds[:3] == ["start", "config", "images"]
    assert kinds[-1] == "finish"
    assert fake.told[0] == ("start", "headstart")
    config = fake.told[1][1]
    assert config["train.epochs"] == 2
    assert config["data.folds"] == 0
    assert all(isinstance(value, bool | int | float | str) for value in config.values())
    assert list(fake.told[2][1]) == ["training images"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logs = [values for what, *values in fake.told if what == "log"]
    assert [step for _, step in logs[:-1]] == [line["step"] for line in lines]
    assert logs[0][0].keys() == {"train/loss", "train/accuracy", "train/time_s", "lr/head_decay", "lr/head_no_decay"}
    assert logs[0][0]["train/loss"] == lines[0]["loss"]
    (last,) = [values for values, _ in logs if values.get("epoch") == 2]
    assert last["epoch/accuracy_val"] == lines[-1]["val_accuracy"]
    assert logs[-1][1] == lines[-1]["step"], "the result is at the last step"
    assert logs[-1][0]["result/accuracy"] == json.loads((out / "summary.json").read_text())["val"]["accuracy"]
    assert json.loads((out / RUN_IDS).read_text()) == {"fake": "fake"}


@pytest.mark.slow
def test_a_run_on_the_bank_tells_too(fake, tiny_data, tmp_path):
    config = config_of(tiny_data, tmp_path / "run", "fake")
    config = replace(config, strategy=replace(config.strategy, features="bank"))
    run(replace(config, runtime=replace(config.runtime, bank=str(tmp_path / "bank"))))
    assert [what for what, *_ in fake.told][:3] == ["start", "config", "images"]
    assert fake.told[-1] == ("finish",)
    assert any("cv_loss" in values for what, *rest in fake.told if what == "log" for values in rest[:1])


@pytest.mark.parametrize("method", ["start", "config", "images", "log", "finish"])
def test_one_that_raises_is_left_out_with_one_warning(method, fake, tiny_data, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    fake.fails = method
    folder = tmp_path / "run"
    folder.mkdir()
    picture = next((tiny_data / "val").rglob("*.png"))
    accelerator = Accelerator(cpu=True)
    val = {"accuracy": 1.0, "accuracy_ci95": [0.5, 1.0], "loss": 0.1}
    summary = SimpleNamespace(val=val, best_epoch=1, wall_s=1.0)
    runtime = RuntimeConfig(trackers="fake, tensorboard")
    with Trackers(accelerator, installed_trackers(runtime), folder, runtime, {"seed": 1}, step=0) as trackers:
        trackers.log_image("training images", picture, step=0)
        for step in (1, 2, 3):
            trackers.log({"step": step, "loss": 0.5, "lr": {"head": 0.1}})
    trackers.finish(picture, summary)
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "fake" in said
    assert f"ConnectionError: no {method} today second line" in said
    scalars, images = events(folder)
    assert scalars["train/loss"] == [(1, 0.5), (2, 0.5), (3, 0.5)], "the other one goes on"
    assert scalars["result/accuracy"][0][1] == 1
    assert images == ["training images"]


@pytest.mark.slow
def test_a_continued_run_goes_on_in_the_same_run_of_its_tracker(fake, tiny_data, tmp_path, capsys):
    pytest.importorskip("tensorboard")

    def stop(values, step):
        if step == 3 and len(fake.told) < 20:
            os.kill(os.getpid(), signal.SIGTERM)

    fake.during = staticmethod(stop)
    config = config_of(tiny_data, tmp_path / "run", "fake, tensorboard")
    with pytest.raises(Stopped):
        run(config)
    assert fake.told[-1] == ("finish",)
    fake.told.clear()
    fake.during = staticmethod(lambda values, step: None)
    out = run(replace(config, train=replace(config.train, resume="auto")))
    kinds = [what for what, *_ in fake.told]
    assert kinds[0] == "start"
    assert "config" not in kinds, "it has the configuration already"
    scalars, _ = events(out)
    steps = [step for step, _ in scalars["train/loss"]]
    assert steps == list(range(1, steps[-1] + 1))
    assert len(steps) == 9
    assert len(scalars["epoch/accuracy_val"]) == 2
    assert capsys.readouterr().err == ""


def test_what_a_killed_run_told_after_its_checkpoint_is_told_anew(tmp_path):
    pytest.importorskip("tensorboard")
    accelerator, runtime = Accelerator(cpu=True), RuntimeConfig(trackers="tensorboard")
    killed = Trackers(accelerator, ["tensorboard"], tmp_path, runtime, {"seed": 1}, step=0)
    for step in range(1, 7):
        killed.log({"step": step, "loss": 0.5})
    time.sleep(1.1)  # event files are ordered by the second in which they were begun
    continued = Trackers(accelerator, ["tensorboard"], tmp_path, runtime, {"seed": 1}, step=3)
    for step in range(4, 9):
        continued.log({"step": step, "loss": 0.25})
    for each in (killed, continued):
        each.__exit__(ValueError, ValueError(), None)
    scalars, _ = events(tmp_path)
    assert scalars["train/loss"] == [(1, 0.5), (2, 0.5), (3, 0.5), *((step, 0.25) for step in range(4, 9))]


@pytest.mark.parametrize("damage", ["no json", "[1]", "a folder"])
def test_damaged_ids_are_one_warning_and_the_trackers_begin_new_runs(damage, fake, tmp_path, capsys):
    path = tmp_path / RUN_IDS
    path.mkdir() if damage == "a folder" else path.write_text(damage)
    runtime = RuntimeConfig(trackers="fake")
    with Trackers(Accelerator(cpu=True), ["fake"], tmp_path, runtime, {"seed": 1}, step=3) as trackers:
        trackers.log({"step": 4, "loss": 0.5})
    assert [what for what, *_ in fake.told] == ["start", "config", "log"]
    said = capsys.readouterr().err
    assert str(path) in said
    assert said.count("warning") == (2 if damage == "a folder" else 1)  # nor can it be written
    assert path.is_dir() or json.loads(path.read_text()) == {"fake": "fake"}


def test_one_that_has_no_id_is_left_out(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers_module._Adapter, "run_id", lambda *_: 1 / 0)
    with Trackers(Accelerator(cpu=True), ["fake"], tmp_path, RuntimeConfig(), {"seed": 1}, step=0) as trackers:
        trackers.log({"step": 1, "loss": 0.5})
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "fake" in said
    assert "ZeroDivisionError" in said
    assert not any(what == "log" for what, *_ in fake.told)


def test_one_that_is_not_installed_is_said_before_anything_is_written(tiny_data, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    with pytest.raises(InputError, match="pip install wandb"):
        run(config_of(tiny_data, tmp_path / "run", "wandb"))
    assert not (tmp_path / "run").exists()
    for name in ("tensorbord", "clearml"):
        with pytest.raises(InputError, match=rf"runtime\.trackers {name} .*tensorboard, trackio"):
            run(config_of(tiny_data, tmp_path / "run", f"{name}, tensorboard"))


def test_runs_without_trackers_write_no_ids(tmp_path):
    Trackers(Accelerator(cpu=True), installed_trackers(RuntimeConfig()), tmp_path, RuntimeConfig(), {}, step=0).log(
        {"step": 1}
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what these packages warn of is between them and theirs
@pytest.mark.parametrize("name", ["trackio", "mlflow", "wandb"])
def test_the_others_offline(name, tiny_data, tmp_path, monkeypatch, capfd):
    pytest.importorskip(name, reason=f"NOT TESTED WITH {name}: pip install {name}", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    config = config_of(tiny_data, tmp_path / "run", name, train={"epochs": 1})
    folder = run(config)
    (run_id,) = json.loads((folder / RUN_IDS).read_text()).values()
    accelerator = Accelerator(cpu=True)
    with Trackers(accelerator, [name], folder, config.runtime, asdict(config), step=5) as again:
        again.log({"step": 6, "loss": 0.25})
    again.finish(folder / "model.safetensors", Summary.read(folder))
    assert json.loads((folder / RUN_IDS).read_text()) == {name: run_id}
    assert "headstart: warning" not in capfd.readouterr().err
    if name == "mlflow":
        import mlflow

        logged = mlflow.MlflowClient().get_metric_history(run_id, "train/loss")
        assert [entry.step for entry in logged] == [1, 2, 3, 4, 5, 6]
        assert {file.path for file in mlflow.MlflowClient().list_artifacts(run_id)} >= {
            "model.safetensors",
            "train_batch.png",
        }
