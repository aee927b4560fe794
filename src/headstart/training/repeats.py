"""The same recipe several times: with other seeds, or on every fold of the data. One folder of runs, one summary."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml
from accelerate import Accelerator

from headstart.config import RunConfig
from headstart.config_io import to_yaml
from headstart.data.manifest import check_splits
from headstart.data.sources.open import open_source
from headstart.data.transforms import Preprocess
from headstart.errors import InputError, Stopped
from headstart.files import write_text
from headstart.messages import info
from headstart.model.backbones import find_backbone
from headstart.model.weight_sources import AUTO, choose_weights
from headstart.report.repeats import write_repeats_pages
from headstart.runs.folder import RunFolder, check_nobody_writes, check_start, choose_folder, describe_place
from headstart.runs.lock import RUNNING, RunLock, is_finished
from headstart.runs.summary import Summary
from headstart.runtime.accelerator import start_accelerator
from headstart.runtime.processes import end_run, on_main
from headstart.training.early_checks import check_root
from headstart.training.finish import write_pages
from headstart.training.one_per_gpu import run_on_gpus, usable_gpus
from headstart.training.state import check_same_recipe, with_stored_weights
from headstart.training.summarize_repeats import Repeat, summarize_repeats


def run_repeats(config: RunConfig, run_once: Callable[..., Path]) -> Path:
    """Train with every seed or on every fold, except what is finished already, and summarize; returns the folder of all
    runs. run_once: of training.run, which depends on this module. Raises InputError and Stopped, as the runs do."""
    began = time.perf_counter()
    check_root(config)
    if config.train.resume not in ("never", "auto"):
        raise InputError(
            f"train.resume {config.train.resume} is one checkpoint, but several runs are requested; use auto"
        )
    accelerator = start_accelerator(config.runtime)
    path = on_main(accelerator, lambda: _check_folder(config))
    if place := describe_place(config.out, path):
        info(accelerator, place)
    on_main(accelerator, lambda: _check_splits(configs_of_repeats(config, path), path))
    config = on_main(accelerator, lambda: _with_weights(config, path))
    configs = configs_of_repeats(config, path)
    on_main(accelerator, lambda: path.mkdir(parents=True, exist_ok=True))
    with RunLock(path if accelerator.is_main_process else None) as running:
        on_main(accelerator, lambda: write_text(path / "config.yaml", to_yaml(replace(config, out=str(path)))))
        _run_all(accelerator, configs, path, run_once)
        if accelerator.is_main_process:
            repeats = [Repeat(name, one, Summary.read(path / name)) for name, one in configs.items()]
            summary = summarize_repeats(config, path, repeats, wall_s=time.perf_counter() - began)
            write_pages(path, partial(write_repeats_pages, path, summary=summary))
            summary.write(RunFolder(path))
            running.release()
    end_run(accelerator, last=True)
    return path


def _run_all(
    accelerator: Accelerator, configs: dict[str, RunConfig], path: Path, run_once: Callable[..., Path]
) -> None:
    """The runs that are not finished, one after the other or one per GPU."""
    todo = on_main(accelerator, lambda: [name for name in configs if not is_finished(path / name)])
    gpus = usable_gpus(accelerator.device) if accelerator.num_processes == 1 else []
    if len(gpus) > 1 and len(todo) > 1:
        run_on_gpus({name: configs[name] for name in todo}, gpus)
        return
    for number, name in enumerate(todo, start=len(configs) - len(todo) + 1):
        info(accelerator, f"\n{name}: {number} of {len(configs)}")
        try:
            run_once(configs[name], last=False)
        except InputError as error:
            if accelerator.is_main_process and {entry.name for entry in path.iterdir()} == {"config.yaml", RUNNING}:
                (path / "config.yaml").unlink()  # no run has begun in it
                (path / RUNNING).unlink()
                path.rmdir()
            raise InputError(f"{name}: {error}") from None
        except Stopped as stop:
            raise Stopped(f"{name}: {stop}", signal_name=stop.signal_name) from None


def configs_of_repeats(config: RunConfig, path: Path) -> dict[str, RunConfig]:
    """Folder in `path` -> configuration of each run; each is an ordinary run."""
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
    path = choose_folder(config.out, strategy=config.strategy.name, root=config.data.root)
    config = with_stored_weights(replace(config, out=str(path)), path)
    written = path / "config.yaml"
    if config.train.resume == "auto" and written.exists():
        try:
            before = yaml.safe_load(written.read_text(encoding="utf-8"))
            repeated = before["train"]["seeds"] > 1 or before["train"]["folds"] > 0
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise InputError(f"{written} is damaged ({error}); start anew in another --out") from None
        if not repeated:
            raise InputError(f"--out {path} holds a single run; name another folder for repeated ones")
        check_same_recipe(config, before, also=() if config.train.folds else ("train.seeds",))
        check_nobody_writes(path)
    else:
        check_start(path, resume=config.train.resume, root=config.data.root)
    return path


def _with_weights(config: RunConfig, path: Path) -> RunConfig:
    """All runs have the same weights, so `auto` is decided before the first. Raises InputError."""
    config = with_stored_weights(config, path)
    if config.model.weights == AUTO:
        chosen = choose_weights(find_backbone(config.model.backbone))
        config = replace(config, model=replace(config.model, weights=chosen))
    return config


def _check_splits(configs: Mapping[str, RunConfig], path: Path) -> None:
    """Raise InputError before the first run if the data or the split of any that is to be run cannot be used."""
    if not all(is_finished(path / name) for name in configs):
        first = next(iter(configs.values()))
        recipes = {name: (config.data, config.seed) for name, config in configs.items()}
        spec = Preprocess.of(first.data, find_backbone(first.model.backbone))
        check_splits(open_source(first.data), recipes, decoder=spec.decode)
