"""Experiment trackers, through Accelerate: who is told what. None of them is needed, and none of them can stop a run."""

import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

from headstart.config import RuntimeConfig, flat
from headstart.errors import InputError, warn
from headstart.files import write_atomically

PACKAGES = ("tensorboard", "trackio", "mlflow", "wandb")  # each is installed under the name of its tracker
RUN_IDS = "trackers.json"


def asked_for(runtime: RuntimeConfig) -> list[str]:
    """The names in runtime.trackers. Raises InputError for one that is unknown or not installed.

    Besides ours, a tracker may be one that was registered with accelerate.tracking.register_tracker_class."""
    names = [name.strip() for name in runtime.trackers.split(",") if name.strip()]
    for name in names:
        if name in PACKAGES:
            if importlib.util.find_spec(name) is None:
                raise InputError(f"runtime.trackers {name} is not installed; pip install {name}, or leave it out")
        elif name not in {str(known) for known in LOGGER_TYPE_TO_CLASS} - _BUILT_INTO_ACCELERATE:
            raise InputError(
                f"runtime.trackers {name} is unknown; one or several of {', '.join(PACKAGES)}, with commas"
            )
    return list(dict.fromkeys(names))


_BUILT_INTO_ACCELERATE = {str(known) for known in LOGGER_TYPE_TO_CLASS}


class Trackers:
    """The trackers of one run, of the main process; for the others, and for runs without any, there are none.

    A run that is continued goes on in the same runs of the trackers, by the ids in trackers.json. One that raises is named in a warning and
    left out from then on. Used in a `with` block, so that they are told of an end by an error; `finish` ends them otherwise."""

    def __init__(self, accelerator: Accelerator, names: Sequence[str], folder: Path, runtime: RuntimeConfig,
                 config: Mapping[str, Any], *, step: int) -> None:  # fmt: skip
        """names: of `asked_for`; config: the whole tree; step: that the run starts or continues after."""
        self._all: dict[str, Any] = {}
        if not accelerator.is_main_process or not names:
            return
        ids = _read_ids(folder / RUN_IDS)
        values = {key: _scalar(value) for key, value in flat(config).items()}
        for name in names:
            self._attempt(name, self._start, accelerator, name, folder, runtime, values, ids, step=step)
        accelerator.trackers = []  # they are ended here, one by one, and not where the first that raises would end the run
        self._step = step
        for name, tracker in list(self._all.items()):
            self._attempt(name, lambda name=name, tracker=tracker: ids.update({name: _id_of(name, tracker, ids)}))
        if self._all:
            _write_ids(folder / RUN_IDS, ids)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._end()

    def record(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: of a step, of an epoch, or of a choice of probe.l2."""
        values, self._step = _metrics(line), line["step"]
        for name, tracker in list(self._all.items()):
            self._attempt(name, tracker.log, values, step=line["step"])

    def picture(self, title: str, path: Path, *, step: int) -> None:
        """A PNG file of the run folder."""
        for name, tracker in list(self._all.items()):
            self._attempt(name, _send_picture, name, tracker, title, path, step)

    def finish(self, model_file: Path, summary: Mapping[str, Any]) -> None:
        """The result, at the last step; the model file; and the end."""
        val = summary["val"]
        low, high = val["accuracy_ci95"]
        values = {
            "result/accuracy": val["accuracy"],
            "result/accuracy_low": low,
            "result/accuracy_high": high,
            "result/loss": val["loss"],
            "result/best_epoch": summary["best_epoch"],
            "result/wall_s": summary["wall_s"],
        }
        for name, tracker in list(self._all.items()):
            self._attempt(name, tracker.log, values, step=self._step)
        for name, tracker in list(self._all.items()):
            self._attempt(name, _send_model, name, tracker, model_file)
        self._end()

    def _start(
        self,
        accelerator: Accelerator,
        name: str,
        folder: Path,
        runtime: RuntimeConfig,
        values: dict[str, Any],
        ids: dict[str, str],
        *,
        step: int,
    ) -> None:
        """Accelerate starts all trackers of a list or none, so each gets a list of its own."""
        accelerator.project_configuration.logging_dir = str(folder)
        accelerator.log_with = filter_trackers([name], str(folder))
        accelerator.trackers = []
        project = "tensorboard" if name == "tensorboard" else runtime.tracker_project
        accelerator.init_trackers(
            project,
            config=None if name in ids else values,  # some refuse a second one that differs
            init_kwargs={name: _options(name, folder, ids.get(name), step=step)},
        )
        self._all[name] = accelerator.trackers[0]

    def _attempt(self, name: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        try:
            work(*arguments, **named)
        except Exception as error:
            self._all.pop(name, None)
            reason = " ".join(str(error).split())[:300]
            warn(f"the tracker {name} failed and is left out from here on ({type(error).__name__}: {reason})")

    def _end(self) -> None:
        for name, tracker in list(self._all.items()):
            self._attempt(name, tracker.finish)
        self._all = {}


def _options(name: str, folder: Path, run_id: str | None, *, step: int) -> dict[str, Any]:
    """What the tracker's own init needs to begin a run, or to go on with one."""
    title = folder.resolve().name
    match name:
        case "tensorboard":  # what was written after the checkpoint is written again
            return {"purge_step": step + 1} if run_id is not None else {}
        case "wandb":
            return {"id": run_id or secrets.token_hex(8), "resume": "allow", "name": title, "dir": str(folder)}
        case "trackio":  # knows runs by their names
            return {"name": run_id or f"{title}-{secrets.token_hex(3)}", "resume": "allow"}
        case "mlflow":
            return {"run_id": run_id} if run_id else {"run_name": title}
        case _:
            return {}


def _id_of(name: str, tracker: Any, ids: Mapping[str, str]) -> str:
    match name:
        case "wandb":
            return str(tracker.run.id)
        case "trackio":
            return str(tracker.run.name)
        case "mlflow":
            return str(tracker.tracker.info.run_id)
        case _:
            return ids.get(name, name)


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """{"loss": .., "lr": {"head": ..}} -> {"train/loss": .., "lr/head": ..}; those of an epoch keep train and val apart."""
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


def _send_picture(name: str, tracker: Any, title: str, path: Path, step: int) -> None:
    from PIL import Image

    if name == "mlflow":
        tracker.log_artifact(str(path))
        return
    if name == "trackio":
        import trackio

        tracker.log({title: trackio.Image(str(path))}, step=step)
        return
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if name == "tensorboard":
        import numpy as np

        tracker.log_images({title: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images({title: [picture]}, step=step)


def _send_model(name: str, tracker: Any, path: Path) -> None:
    """TensorBoard holds no files."""
    match name:
        case "mlflow":
            tracker.log_artifact(str(path))
        case "wandb":
            import wandb

            artifact = wandb.Artifact(_file_name(tracker.run.name), type="model")
            artifact.add_file(str(path))
            tracker.run.log_artifact(artifact)
        case "trackio":
            tracker.run.log_artifact(str(path), name=_file_name(tracker.run.name), type="model")


def _file_name(title: str) -> str:
    """A name that artifacts may have."""
    return "model-" + "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in title)


def _scalar(value: Any) -> Any:
    """What every tracker takes for the value of a parameter."""
    return value if isinstance(value, bool | int | float | str) else "null" if value is None else str(value)


def _read_ids(path: Path) -> dict[str, str]:
    """None known, after a warning, if the file is damaged: a tracker must not end a run."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(ids, dict) or not all(isinstance(entry, str) for entry in ids.values()):
            raise ValueError("it is no list of ids by name")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warn(f"{path} cannot be read ({error}), so the trackers begin new runs")
        return {}
    return ids


def _write_ids(path: Path, ids: Mapping[str, str]) -> None:
    try:
        write_atomically(path, lambda staging: staging.write_text(json.dumps(ids, indent=2) + "\n"))
    except OSError as error:
        warn(f"{path} cannot be written ({error}), so the trackers would begin new runs if this one is continued")
