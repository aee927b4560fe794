"""Experiment trackers, through Accelerate. None is needed, and none can stop a run."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers
from PIL import Image

from headstart.config import RuntimeConfig, flat
from headstart.files import write_json
from headstart.messages import warn
from headstart.runs.summary import Summary
from headstart.training.tracker_names import TRACKERS, trackers_in
from headstart.wording import one_line

RUN_IDS = "trackers.json"
_SHIPPED_WITH_ACCELERATE = {str(known) for known in LOGGER_TYPE_TO_CLASS}


class _Adapter:
    """What differs between trackers. This one is for those registered with Accelerate's register_tracker_class."""

    def init_options(self, folder: Path, run_id: str | None, *, step: int) -> dict[str, Any]:
        """For Accelerate's init_kwargs: to start a run, or to continue run_id after `step`."""
        return {}

    def run_id(self, tracker: Any, known: str) -> str:
        return known

    def log_image(self, tracker: Any, title: str, path: Path, *, step: int) -> None:
        if hasattr(tracker, "log_images"):
            with Image.open(path) as image:
                tracker.log_images({title: [image.convert("RGB")]}, step=step)

    def log_model(self, tracker: Any, path: Path) -> None:
        pass


class _TensorBoard(_Adapter):
    def init_options(self, folder: Path, run_id: str | None, *, step: int) -> dict[str, Any]:
        return {} if run_id is None else {"purge_step": step + 1}  # what came after the checkpoint is written again

    def log_image(self, tracker: Any, title: str, path: Path, *, step: int) -> None:
        import numpy as np

        with Image.open(path) as image:
            tracker.log_images({title: np.asarray(image.convert("RGB"))[None]}, step=step, dataformats="NHWC")


class _Wandb(_Adapter):
    def init_options(self, folder: Path, run_id: str | None, *, step: int) -> dict[str, Any]:
        title = folder.resolve().name
        return {"id": run_id or secrets.token_hex(8), "resume": "allow", "name": title, "dir": str(folder)}

    def run_id(self, tracker: Any, known: str) -> str:
        return str(tracker.run.id)

    def log_model(self, tracker: Any, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(_artifact_name(tracker.run.name), type="model")
        artifact.add_file(str(path))
        tracker.run.log_artifact(artifact)


class _Trackio(_Adapter):
    def init_options(self, folder: Path, run_id: str | None, *, step: int) -> dict[str, Any]:
        return {"name": run_id or f"{folder.resolve().name}-{secrets.token_hex(3)}", "resume": "allow"}

    def run_id(self, tracker: Any, known: str) -> str:
        return str(tracker.run.name)  # it identifies runs by their names

    def log_image(self, tracker: Any, title: str, path: Path, *, step: int) -> None:
        import trackio

        tracker.log({title: trackio.Image(str(path))}, step=step)

    def log_model(self, tracker: Any, path: Path) -> None:
        tracker.run.log_artifact(str(path), name=_artifact_name(tracker.run.name), type="model")


class _Mlflow(_Adapter):
    def init_options(self, folder: Path, run_id: str | None, *, step: int) -> dict[str, Any]:
        return {"run_id": run_id} if run_id else {"run_name": folder.resolve().name}

    def run_id(self, tracker: Any, known: str) -> str:
        return str(tracker.tracker.info.run_id)

    def log_image(self, tracker: Any, title: str, path: Path, *, step: int) -> None:
        tracker.log_artifact(str(path))

    def log_model(self, tracker: Any, path: Path) -> None:
        tracker.log_artifact(str(path))


ADAPTERS = dict(zip(TRACKERS, (_TensorBoard(), _Trackio(), _Mlflow(), _Wandb()), strict=True))


def installed_trackers(runtime: RuntimeConfig) -> list[str]:
    """The names in runtime.trackers: of TRACKERS, or registered with Accelerate. Raises InputError."""
    registered = set(map(str, LOGGER_TYPE_TO_CLASS)) - _SHIPPED_WITH_ACCELERATE
    return trackers_in(runtime.trackers, registered=registered)


class Trackers:
    """The trackers of one run, on the main process. A resumed run continues in the same runs of its trackers, by the
    ids in trackers.json. A tracker that raises is dropped with a warning. Use it in a `with` block, which ends the
    trackers on an error; `finish` ends them otherwise."""

    def __init__(
        self,
        accelerator: Accelerator,
        names: Sequence[str],
        folder: Path,
        runtime: RuntimeConfig,
        config: Mapping[str, Any],
        *,
        step: int,
    ) -> None:
        """names: of `installed_trackers`; config: the whole tree; step: that the run starts or resumes after."""
        self._trackers: dict[str, tuple[_Adapter, Any]] = {}
        self._step = step
        if not accelerator.is_main_process or not names:
            return
        ids = _read_ids(folder / RUN_IDS)
        values = {key: _scalar(value) for key, value in flat(config).items()}

        def start(name: str) -> None:
            # Accelerate starts all trackers of a list or none, so each gets a list of its own
            accelerator.project_configuration.logging_dir = str(folder)
            accelerator.log_with = filter_trackers([name], str(folder))
            accelerator.trackers = []
            adapter = ADAPTERS.get(name, _Adapter())
            options = adapter.init_options(folder, ids.get(name), step=step)
            accelerator.init_trackers(
                "tensorboard" if name == "tensorboard" else runtime.tracker_project,
                config=None if name in ids else values,  # some refuse a second one that differs
                init_kwargs={name: options},
            )
            tracker = accelerator.trackers[0]
            ids[name] = adapter.run_id(tracker, ids.get(name, name))
            self._trackers[name] = adapter, tracker

        for name in names:
            self._attempt(name, start, name)
        accelerator.trackers = []  # this class ends them one by one, so that one that raises does not end the run
        if self._trackers:
            try:
                write_json(folder / RUN_IDS, ids)
            except OSError as error:
                warn(
                    f"{folder / RUN_IDS} cannot be written ({error}), so the trackers would start new runs if this one "
                    "is resumed"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._each(lambda adapter, tracker: tracker.finish())

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        values, self._step = _metrics(line), line["step"]
        self._each(lambda adapter, tracker: tracker.log(values, step=self._step))

    def log_image(self, title: str, path: Path, *, step: int) -> None:
        self._each(lambda adapter, tracker: adapter.log_image(tracker, title, path, step=step))

    def finish(self, model_file: Path, summary: Summary) -> None:
        """Log the result at the last step and the model file, and end the trackers."""
        low, high = summary.val["accuracy_ci95"]
        values = {
            "result/accuracy": summary.val["accuracy"],
            "result/accuracy_low": low,
            "result/accuracy_high": high,
            "result/loss": summary.val["loss"],
            "result/best_epoch": summary.best_epoch,
            "result/wall_s": summary.wall_s,
        }
        self._each(lambda adapter, tracker: tracker.log(values, step=self._step))
        self._each(lambda adapter, tracker: adapter.log_model(tracker, model_file))
        self._each(lambda adapter, tracker: tracker.finish())

    def _each(self, work: Callable[[_Adapter, Any], object]) -> None:
        for name, (adapter, tracker) in list(self._trackers.items()):
            self._attempt(name, work, adapter, tracker)

    def _attempt(self, name: str, work: Callable[..., object], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self._trackers.pop(name, None)
            reason = f"{type(error).__name__}: {one_line(error)[:300]}"
            warn(f"the tracker {name} failed and is not used any more ({reason})")


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """{"loss": .., "lr": {"head": ..}} -> {"train/loss": .., "lr/head": ..}; an epoch's train and val stay apart."""
    values: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            values |= {f"{key}/{name}": float(entry) for name, entry in value.items()}
        elif key.startswith(("train_", "val_")):
            split, _, what = key.partition("_")
            values[f"epoch/{what}_{split}"] = float(value)
        elif key in ("loss", "accuracy", "time_s") and "epoch" not in line:
            values[f"train/{key}"] = float(value)
        elif key != "step":
            values[key] = float(value)
    return values


def _artifact_name(title: str) -> str:
    return "model-" + "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in title)


def _scalar(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else "null" if value is None else str(value)


def _read_ids(path: Path) -> dict[str, str]:
    """Nothing, after a warning, if the file is damaged."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(ids, dict) or not all(isinstance(entry, str) for entry in ids.values()):
            raise ValueError("not a table of ids by name")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warn(f"{path} cannot be read ({error}), so the trackers start new runs")
        return {}
    return ids
