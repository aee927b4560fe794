"""`headstart bench data`: speed of the input pipeline and of training, the bottleneck, and the settings to choose.

Rates are medians over rounds. Each round has every measurement once, so that a machine that is slow for a while
slows all."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader

from headstart.config import RunConfig
from headstart.data.loaders import as_dataset, train_loader
from headstart.data.manifest import build_manifest
from headstart.data.pixel_cache import cache_limit_for
from headstart.data.samples import Manifest, Samples
from headstart.data.sampling import augmentation_seeds, keys_of
from headstart.data.sources.open import open_source
from headstart.data.transforms import PixelCache, Preprocess, Transform, train_transform
from headstart.errors import InputError
from headstart.evaluation.predictions import Predictions
from headstart.model.backbones import find_backbone
from headstart.model.build import build_model
from headstart.model.weights import obtain_weights
from headstart.recipe.loss import TrainingLoss
from headstart.recipe.optimizer import build_optimizer, plan
from headstart.runs.progress import TrainingProgress
from headstart.runtime.accelerator import set_threads, start_accelerator
from headstart.runtime.hardware import usable_cores
from headstart.runtime.precision import choose_precision, describe_precision
from headstart.runtime.signals import StopRequest
from headstart.training.log import TrainingLog
from headstart.training.loop import fit
from headstart.training.state import TrainingState
from headstart.wording import plural

IMAGES = 256  # images that measure a single stage
WARM_UP = 4  # steps before the clock starts: first allocations, and workers that fill their queue
ENOUGH = 0.95  # share of the step from which on the input is not the bottleneck
WORTH_IT = 1.01  # gain in speed that justifies more workers or a cache


def bench_data(config: RunConfig, *, rounds: int, steps: int) -> None:
    """Print the rates, the share of the speed of a step that training reaches, the bottleneck, and the best settings.

    config: data, model.weights, train.batch_size and runtime are used. Raises InputError for unsuitable data."""
    threads = set_threads(config.runtime.threads)
    accelerator = start_accelerator(config.runtime)
    precision = describe_precision(*choose_precision(config.runtime.mixed_precision, accelerator.device))
    cores = usable_cores()
    count = plural(threads, "thread")
    spec = Preprocess.of(config.data, find_backbone(config.model.backbone))
    data = replace(config.data, on_bad_file="skip", rescan=True)
    transform = train_transform(data, spec, cache_limit=cache_limit_for(data))
    manifest = build_manifest(
        open_source(data),
        data,
        seed=config.seed,
        decoder=spec.decode,
        cache=PixelCache(train=[transform], val=[]),
    )
    samples = manifest.of("train")
    if config.train.batch_size > len(samples):
        raise InputError(
            f"--batch_size {config.train.batch_size} exceeds the {len(samples)} training images; "
            f"use at most {len(samples)}"
        )
    print(
        f"{len(samples)} training images, {spec.image_size} px, batch {config.train.batch_size}, {precision} on "
        f"{accelerator.device.type}, {count}, {plural(cores, 'core')}; img/s, medians of {rounds} rounds (minutes)"
    )
    stages = _stages(samples[:IMAGES], transform, spec, seed=config.seed, cores=cores)
    bench = _Bench(config, accelerator, manifest, spec, steps=steps)
    uncached = train_transform(config.data, spec)
    counts = sorted({0, cores, *(2**k for k in range(cores.bit_length()) if 2**k < cores)})
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for name, measure in stages.items():
            found[name].append(measure())
        found["batch to the device"].append(bench.transfer())
        for workers in counts:
            found[f"input, {workers} workers"].append(bench.input_alone(transform, workers))
            found[f"input, {workers} workers, decoding"].append(bench.input_alone(uncached, workers))
        for workers in counts:  # each with a measurement of the step just before
            alone = bench.run_alone()
            real = bench.run(transform, workers)
            found["step"].append(alone)
            found[f"run, {workers} workers"].append(real)
            found[f"share, {workers} workers"].append(real / alone)
        shares = ", ".join(f"{n} workers {found[f'share, {n} workers'][-1]:.1%}" for n in counts)
        print(f"round {number}: step alone {found['step'][-1]:.1f}, training reaches {shares}", flush=True)
    medians = {name: float(np.median(values)) for name, values in found.items()}
    for name, values in found.items():
        if not name.startswith("share"):
            print(f"{name:<28}{medians[name]:>9.1f}   ({min(values):.1f} to {max(values):.1f})")
    print("\n".join(conclude(medians, counts)))


def conclude(rates: Mapping[str, float], counts: Sequence[int]) -> list[str]:
    """Share of the step, bottleneck and best settings, a line each. rates: medians by name; counts: of workers."""
    run = {workers: rates[f"run, {workers} workers"] for workers in counts}
    workers = min(count for count in run if run[count] * WORTH_IT >= max(run.values()))
    share, step = rates[f"share, {workers} workers"], rates["step"]
    given, decoding = rates[f"input, {workers} workers"], rates[f"input, {workers} workers, decoding"]
    stages = ("read", "decode", "training transform")
    slowest = min(stages[2:] if given > WORTH_IT * decoding else stages, key=lambda stage: rates[stage])
    if share >= ENOUGH:
        bottleneck = f"the training step: the input could provide {given:.0f} img/s"
    elif given < step / ENOUGH:
        slow = f"its slowest stage, {slowest}, has {rates[slowest]:.0f} img/s per thread"
        bottleneck = f"the input: {given:.0f} img/s; {slow}"
    else:
        bottleneck = f"the cores: input ({given:.0f} img/s alone) and step ({step:.0f} img/s alone) compete for them"
    cache = "auto" if given > WORTH_IT * decoding else "off"
    why = f"the input provides {given:.0f} img/s with cached images, {decoding:.0f} when each is decoded again"
    return [
        f"training reaches {share:.1%} of the speed of a step on tensors in memory "
        f"({run[workers]:.1f} of {step:.1f} img/s, {plural(workers, 'worker')})",
        f"bottleneck: {bottleneck}",
        f"settings: --data.num_workers {workers} --data.cache {cache} ({why})",
    ]


def _never() -> Predictions:
    raise AssertionError("no epoch ends in a benchmark")


def _stages(
    samples: Samples, transform: Transform, spec: Preprocess, *, seed: int, cores: int
) -> dict[str, Callable[[], float]]:
    """Name -> measurement of images per second, in one thread unless the name differs. The input of a stage, which is
    the output of the stage before, is in memory."""
    paths, read = samples.column("path"), samples.source.read
    try:
        contents = [read(path) for path in paths]
    except OSError as error:
        raise InputError(f"{samples.source.root}: {error}; make its images readable") from None
    images = [spec.decode(data) for data in contents]
    prepared = [transform.prepare(image) for image in images]
    seeds = augmentation_seeds(keys_of(samples.column("id")), seed=seed, epoch=0).tolist()
    vary = transform.vary or (lambda pixels, seed: pixels)
    return {
        "read": lambda: _rate(len(paths), lambda i: read(paths[i])),
        "decode": lambda: _rate(len(paths), lambda i: spec.decode(contents[i])),
        f"decode, {cores} threads": lambda: _rate(len(paths), lambda i: spec.decode(contents[i]), threads=cores),
        "training transform": lambda: _rate(len(paths), lambda i: vary(prepared[i], seeds[i])),
        "evaluation transform": lambda: _rate(len(paths), lambda i: spec.resize_and_crop(images[i])),
    }


def _rate(count: int, work: Callable[[int], object], *, threads: int = 1) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    started = time.perf_counter()
    if threads == 1:
        for index in range(count):
            work(index)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(count)))
    spent = time.perf_counter() - started
    torch.set_num_threads(before)
    return count / spent


class _Enough(Exception):
    """The requested steps are done."""


class _Bench:
    """The training loop on batches from memory or from the loader, and the loader without the loop."""

    def __init__(
        self, config: RunConfig, accelerator: Any, manifest: Manifest, spec: Preprocess, *, steps: int
    ) -> None:
        self.config, self.accelerator, self.spec, self.steps = config, accelerator, spec, steps
        self.samples = manifest.of("train")
        self.rows = as_dataset(self.samples, manifest.classes)
        backbone, num_classes = find_backbone(config.model.backbone), len(manifest.classes)
        tensors = obtain_weights(accelerator, config.model.weights, backbone).tensors
        model = build_model(backbone, num_classes, tensors=tensors, head_init="zero", seed=config.seed)
        optimizer = build_optimizer(plan(model, config.strategy, config.optim).groups, config.optim)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        self.layout = torch.channels_last if config.runtime.channels_last else torch.contiguous_format
        self.prepared = accelerator.prepare(model.to(memory_format=self.layout), optimizer, scheduler)
        self.loss_of = TrainingLoss.of(
            config.optim, self.samples.codes(manifest.classes), num_classes=num_classes, device=accelerator.device
        )
        batch = next(iter(self._loader(train_transform(config.data, spec), workers=0)))
        self.batch = {name: value.to(accelerator.device) for name, value in batch.items()}

    def run_alone(self) -> float:
        """Images per second of the loop on a batch that is on the device already."""
        return self._fit(repeat(self.batch))

    def run(self, transform: Transform, workers: int) -> float:
        """Images per second of the loop on batches from the loader, as in a run."""
        loader = prepare_data_loader(  # not the accelerator's: it would keep the loader, and with it the workers
            self._loader(transform, workers=workers),
            device=self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=True,
        )
        try:
            return self._fit(iter(loader))
        finally:
            loader.end()

    def input_alone(self, transform: Transform, workers: int) -> float:
        """Images per second of the loader without computation beside it."""
        stream = iter(self._loader(transform, workers=workers))
        queued = 4 * workers  # batches that the workers made before the clock started
        for _ in range(WARM_UP + queued):
            next(stream)
        started = time.perf_counter()
        for _ in range(self.steps):
            next(stream)
        return self.steps * self.config.train.batch_size / (time.perf_counter() - started)

    def transfer(self) -> float:
        """Images per second from memory to the device; infinite where the device is the CPU."""
        if self.accelerator.device.type == "cpu":
            return float("inf")
        pixels = self.batch["pixels"].cpu().pin_memory()
        started = time.perf_counter()
        for _ in range(20):
            pixels.to(self.accelerator.device, non_blocking=True)
        self._wait()
        return 20 * len(pixels) / (time.perf_counter() - started)

    def _loader(self, transform: Transform, *, workers: int) -> Any:
        return train_loader(
            self.rows,
            self.samples.source,
            transform,
            batch_size=self.config.train.batch_size,
            accumulation=1,
            num_steps=WARM_UP + self.steps + 8 * (workers + 2),
            start_step=0,
            seed=self.config.seed,
            num_workers=workers,
        )

    def _fit(self, batches: Iterator[Any]) -> float:
        clock: list[float] = []

        def clocked() -> Iterator[Any]:
            for step in range(WARM_UP + self.steps):
                if step == WARM_UP:
                    self._wait()
                    clock.append(time.perf_counter())
                yield next(batches)
            self._wait()
            clock.append(time.perf_counter())
            raise _Enough

        model, optimizer, scheduler = self.prepared
        total = WARM_UP + self.steps + 1
        progress = TrainingProgress(ends=[total], start_step=0, batch_size=self.config.train.batch_size, style="silent")
        state, groups = TrainingState(), [group["name"] for group in optimizer.param_groups]
        log = TrainingLog(
            self.accelerator,
            self.config,
            state,
            groups,
            progress,
            folder=None,
            write=lambda line: None,
            keep_best=lambda metrics: None,
        )
        with suppress(_Enough):
            # no signal handlers: Ctrl-C ends the benchmark, there is nothing to save
            fit(
                model,
                optimizer,
                scheduler,
                clocked(),
                accelerator=self.accelerator,
                state=state,
                epoch_ends=[total],
                inputs=lambda batch: self.spec.normalize(batch["pixels"].contiguous(memory_format=self.layout)),
                loss_fn=self.loss_of,
                evaluate=_never,
                log=log,
                stop=StopRequest(),
            )
        return self.steps * self.config.train.batch_size / (clock[1] - clock[0])

    def _wait(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
