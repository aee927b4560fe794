"""The same recipe several times: with other seeds, or on every fold of the data. One folder of runs, one summary."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from accelerate import Accelerator

from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.data.manifest import check_splits
from headstart.data.samples import COLUMNS, Sample, Samples
from headstart.data.sources.open import open_source
from headstart.data.transforms import Preprocess
from headstart.errors import InputError, Stopped
from headstart.evaluation.predictions import Predictions, describe
from headstart.evaluation.statistics import mean_interval, wilson
from headstart.report.comparison import Measured, read_measured
from headstart.runs.folder import RunFolder, check_nobody_writes, check_start, choose_folder, predictions_table
from headstart.runs.lock import RUNNING, Running
from headstart.runtime.accelerator import start_accelerator, versions
from headstart.runtime.processes import finish, on_main
from headstart.training.one_per_gpu import run_on_gpus, usable_gpus
from headstart.training.state import check_same_recipe


class RunOnce(Protocol):
    """start._run_once, which stands above this module."""

    def __call__(self, config: RunConfig, *, last: bool) -> Path: ...


@dataclass(frozen=True)
class Child:
    """One of the runs: folder in that of all of them, the part of the configuration that is its own, the summary it left."""

    folder: str
    config: RunConfig
    summary: dict[str, Any]


def run_repeats(config: RunConfig, run_once: RunOnce) -> Path:
    """Train with every seed or on every fold, what is finished already left as it is, and sum up; returns the folder of all.

    Raises InputError and Stopped, as the runs do.
    """
    started = time.perf_counter()
    if not config.data.root:
        raise InputError("data.root is not set; name a folder of images with --data.root DIR")
    if config.train.resume not in ("never", "auto"):
        raise InputError(
            f"train.resume {config.train.resume} names one checkpoint, and several runs are asked for; use auto or never"
        )
    accelerator = start_accelerator(config.runtime)
    path = on_main(accelerator, lambda: _check_folder(config))
    configs = children_of(config, path)
    on_main(accelerator, lambda: _check_splits(configs, path))
    on_main(accelerator, lambda: path.mkdir(parents=True, exist_ok=True))
    with Running(path if accelerator.is_main_process else None) as running:
        on_main(accelerator, lambda: RunFolder(path).write_text("config.yaml", to_yaml(replace(config, out=str(path)))))
        _run_all(accelerator, configs, path, run_once)
        if accelerator.is_main_process:
            children = [Child(name, child, _summary(path / name)) for name, child in configs.items()]
            summary = sum_up(config, path, children)
            summary["wall_s"] = time.perf_counter() - started
            RunFolder(path).write_json("summary.json", summary)
            running.end()
            _print(summary, path)
    finish(accelerator, last=True)
    return path


def _run_all(accelerator: Accelerator, configs: dict[str, RunConfig], path: Path, run_once: RunOnce) -> None:
    """What is not finished yet, one after the other or one per GPU."""
    todo = on_main(accelerator, lambda: [name for name in configs if not (path / name / "summary.json").exists()])
    gpus = usable_gpus(accelerator.device) if accelerator.num_processes == 1 else []
    if len(gpus) > 1 and len(todo) > 1:
        run_on_gpus({name: configs[name] for name in todo}, gpus)
    else:
        for name in todo:
            accelerator.print(f"\n{name}: {len(configs) - len(todo) + todo.index(name) + 1} of {len(configs)}")
            try:
                run_once(configs[name], last=False)
            except InputError as error:
                if accelerator.is_main_process:
                    _leave_nothing(path)
                raise InputError(f"{name}: {error}") from None
            except Stopped as stop:
                raise Stopped(f"{name}: {stop}; all of them: --out {path} --train.resume auto") from None


def children_of(config: RunConfig, path: Path) -> dict[str, RunConfig]:
    """Folder -> configuration of each run; each is a run of its own that `headstart train` could do."""
    folds, num_seeds = config.train.folds, config.train.seeds
    config = replace(config, train=replace(config.train, seeds=1, folds=0, resume="auto"))
    if folds:
        split = "stratified" if config.data.split == "folder" else config.data.split
        parts = {
            f"fold_{fold}": replace(config, data=replace(config.data, split=split, folds=folds, fold=fold))
            for fold in range(folds)
        }
    else:
        seeds = range(config.seed, config.seed + num_seeds)
        parts = {f"seed_{seed}": replace(config, seed=seed) for seed in seeds}
    return {name: replace(part, out=str(path / name)) for name, part in parts.items()}


def _check_folder(config: RunConfig) -> Path:
    """The folder of all runs. Raises InputError if it holds something else."""
    path = choose_folder(config.out, strategy=config.strategy.name)
    config = replace(config, out=str(path))
    written = path / "config.yaml"
    if config.train.resume == "auto" and written.exists():
        try:
            before = yaml.safe_load(written.read_text(encoding="utf-8"))
            repeated = before["train"]["seeds"] > 1 or before["train"]["folds"] > 0
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise InputError(f"{written} is damaged ({error}); start anew in another --out") from None
        if not repeated:
            raise InputError(f"--out {path} holds a single run; name another folder for repeated ones")
        check_same_recipe(config, before, more=() if config.train.folds else ("train.seeds",))
        check_nobody_writes(path)
    else:
        check_start(path, resume=config.train.resume)
    return path


def _check_splits(configs: Mapping[str, RunConfig], path: Path) -> None:
    """Raise InputError before the first run if the data or the split of any that is to be run cannot be used."""
    if not all((path / name / "summary.json").exists() for name in configs):
        data = next(iter(configs.values())).data
        recipes = {name: (config.data, config.seed) for name, config in configs.items()}
        check_splits(open_source(data), recipes, say=print, decoder=Preprocess.of(data).decode)


def _leave_nothing(path: Path) -> None:
    """Remove the folder again if no run has begun in it."""
    if {entry.name for entry in path.iterdir()} == {"config.yaml", RUNNING}:
        (path / "config.yaml").unlink()
        (path / RUNNING).unlink()
        path.rmdir()


def sum_up(config: RunConfig, path: Path, children: Sequence[Child]) -> dict[str, Any]:
    """What summary.json says of all runs; writes the pooled predictions of folds beside it."""
    summaries = [child.summary for child in children]
    accuracies = [summary["val"]["accuracy"] for summary in summaries]
    losses = [summary["val"]["loss"] for summary in summaries]
    same_images = len({summary["manifest_sha256"] for summary in summaries}) == 1
    kind = "folds" if config.train.folds else "seeds"
    found: dict[str, Any] = {
        "repeats": kind,
        "strategy": summaries[0]["strategy"],
        "classes": summaries[0]["classes"],
        "seed": config.seed,
        "epochs": summaries[0]["epochs"],
        "weights": summaries[0]["weights"],
        "same_images": same_images,
        # the probe that tuning starts from is one of those to choose from
        "epoch_chosen_on_val": summaries[0]["epochs"] + ("tuning_kept" in summaries[0].get("probe", {})) > 1,
        "runs": [
            {
                "folder": child.folder,
                "seed": child.config.seed,
                **({"fold": child.config.data.fold} if config.train.folds else {}),
                **{key: child.summary["val"][key] for key in ("n", "correct", "accuracy", "loss")},
                "best_epoch": child.summary["best_epoch"],
                "wall_s": child.summary["wall_s"],
            }
            for child in children
        ],
        "spread": {"accuracy": _spread(accuracies), "loss": _spread(losses)},
    }
    if kind == "folds":
        measured = [read_measured(str(path / child.folder)) for child in children]
        _check_folds(measured)
        found["val"] = _pool(path, measured)
        overlap = 1 / (config.train.folds - 1)  # images measured, to images trained on
    else:
        vals = [summary["val"] for summary in summaries]
        found["val"] = _mean_of_seeds(vals) if same_images else _all_answers(vals)
        trained = sum(summary["train"]["n"] for summary in summaries)
        overlap = 0.0 if same_images else sum(val["n"] for val in vals) / trained
    found["spread"]["accuracy"]["ci95"] = _corrected_interval(accuracies, overlap=overlap)
    found["spread"]["accuracy"]["ci95_is"] = "t" if overlap == 0 else "t, corrected for overlapping training images"
    if found["spread"]["accuracy"]["ci95"] is None:
        found["spread"]["accuracy"]["ci95_is"] = "none, as all runs have the same accuracy"
    found["versions"] = versions()
    return found


def _mean_of_seeds(vals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of runs on the same images. The interval is Wilson's for the mean: more seeds do not make more images."""
    low, high = wilson(round(float(np.mean([val["correct"] for val in vals]))), vals[0]["n"])
    return {
        "n": vals[0]["n"],
        "accuracy": float(np.mean([val["accuracy"] for val in vals])),
        "accuracy_ci95": [low, high],
        "loss": float(np.mean([val["loss"] for val in vals])),
    }


def _all_answers(vals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of runs on images of their own, some of them in several: all answers together. They are not independent, so no interval."""
    count, correct = sum(val["n"] for val in vals), sum(val["correct"] for val in vals)
    return {
        "n": count,
        "correct": correct,
        "accuracy": correct / count,
        "accuracy_ci95": None,
        "loss": sum(val["n"] * val["loss"] for val in vals) / count,
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "lowest": min(values),
        "highest": max(values),
    }


def _corrected_interval(values: Sequence[float], *, overlap: float) -> list[float] | None:
    """Student's t interval of the mean accuracy, cut off at 0 and 1; None where all are the same. Runs that share training images
    are not independent, and the variance of the mean is larger by that (Nadeau and Bengio 2003). overlap: images measured /
    images trained on; 0: independent."""
    plain = mean_interval(values)
    if plain is None or min(values) == max(values):
        return None
    mean, reach = float(np.mean(values)), (plain[1] - plain[0]) / 2
    reach *= math.sqrt(1 + len(values) * overlap)
    return [max(0.0, mean - reach), min(1.0, mean + reach)]


def _check_folds(measured: Sequence[Measured]) -> None:
    """Raise InputError if an image was measured in two folds: then the data changed between the runs."""
    seen: dict[tuple[str, str, int], str] = {}
    for run in measured:
        for key, name in zip(run.keys, run.paths, strict=True):
            if key in seen:
                raise InputError(
                    f"{name} is measured in {run.path} and in {seen[key]}; the images changed between the runs, so start "
                    "anew in another --out"
                )
            seen[key] = run.path


def _pool(path: Path, measured: Sequence[Measured]) -> dict[str, Any]:
    """Every image once, by the network that was not trained on it: predictions.parquet, manifest.parquet, and their metrics."""
    classes = measured[0].classes
    samples: list[Sample] = []
    probabilities, labels = [], []
    for run in measured:
        for (content, label, _), name in zip(run.keys, run.paths, strict=True):
            samples.append(Sample(f"{content[:16]}-{len(samples)}", name, content, "val", label))
        probabilities.append(run.probabilities)
        labels.append(run.labels)
    pooled, codes = np.concatenate(probabilities), np.concatenate(labels)
    folder = RunFolder(path)
    table = Samples.of(samples, [], None).table  # type: ignore[arg-type]
    folder.write_table("manifest.parquet", table.select(COLUMNS))
    folder.write_table(
        "predictions.parquet",
        predictions_table(
            ids=[sample.id for sample in samples],
            paths=[sample.path for sample in samples],
            labels=[sample.label for sample in samples],
            probabilities=pooled,
            classes=classes,
        ),
    )
    logits = np.log(np.maximum(pooled, np.finfo(np.float64).tiny))
    return describe(Predictions(logits, codes), classes)


def _summary(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return values


def _print(summary: dict[str, Any], path: Path) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    right = [
        Column(name, justify="right", no_wrap=True) for name in ("accuracy", "correct", "loss", "best epoch", "seconds")
    ]
    table = Table("run", *right)
    for run in summary["runs"]:
        table.add_row(run["folder"], _percent(run["accuracy"]), f"{run['correct']} of {run['n']}", f"{run['loss']:.4f}",
                      str(run["best_epoch"]), f"{run['wall_s']:.0f}")  # fmt: skip
    console.print()
    console.print(table)
    for line in results_in_words(summary):
        console.print(line)
    console.print(f"{path}: summary.json and a folder of each run")


def results_in_words(summary: Mapping[str, Any]) -> list[str]:
    """What came of all runs, a line each."""
    spread, val, count = summary["spread"]["accuracy"], summary["val"], summary["val"]["n"]
    sd = "" if spread["sd"] is None else f", sd {100 * spread['sd']:.1f} points"
    lines = [
        f"accuracy {_percent(spread['mean'])} on average{sd}, {_percent(spread['lowest'])} to {_percent(spread['highest'])}"
    ]
    if summary["repeats"] == "folds":
        lines.append(
            f"all {count} images, each by the network that was not trained on it: {_percent(val['accuracy'])} "
            f"{_interval(val['accuracy_ci95'])} (Wilson)"
        )
    elif summary["same_images"]:
        lines.append(f"for {count} images the interval is {_interval(val['accuracy_ci95'])} (Wilson, of the mean)")
    else:
        lines.append(
            f"each seed measures images of its own: {val['correct']} of {count} answers are right in all; an image may be among them "
            "several times, so they have no interval"
        )
    if summary["epoch_chosen_on_val"]:
        lines.append(
            "the images that are measured chose the epoch that is kept, in every run, which flatters them a little"
        )
    of = "another seed" if summary["same_images"] else "another split"
    if spread["ci95"] is not None:
        lines.append(f"the mean over runs, had each been {of}: {_interval(spread['ci95'])} ({spread['ci95_is']})")
    else:
        lines.append(
            f"no interval of the mean over runs: they all came to the same accuracy, which does not say what {of} would bring"
        )
    return lines


def _interval(limits: Sequence[float]) -> str:
    return f"[{_percent(limits[0])}, {_percent(limits[1])}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
