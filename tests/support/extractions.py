"""Four extractions in a row, for each of two processes to run: what a process reads from the images fails or is
stopped."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.backbones import RESNET18
from headstart.config import DataConfig, RuntimeConfig
from headstart.data.manifest import build_manifest
from headstart.data.source import Scan
from headstart.data.sources.folders import ClassFolders
from headstart.data.transforms import Preprocess
from headstart.errors import InputError, Stopped
from headstart.features import coordination, extraction
from headstart.features.bank import Bank, bank_key
from headstart.model.forward import FrozenNetwork
from headstart.model.weights import load_weights
from headstart.runtime.accelerator import start_accelerator
from headstart.runtime.signals import StopRequest


class ReadBy:
    """A source that calls `before_read` with the number of the image that is about to be read, counted from 1."""

    columns = ()

    def __init__(self, source: ClassFolders, before_read: Callable[[int], None]) -> None:
        self.source, self.before_read, self.num_read = source, before_read, 0
        self.root, self.identity = source.root, source.identity

    def scan(self) -> Scan:
        return self.source.scan()

    def read(self, path: str) -> bytes:
        self.num_read += 1
        self.before_read(self.num_read)
        return self.source.read(path)


def _nothing(number: int) -> None:
    """The image is read."""


def _break(number: int) -> None:
    raise OSError(5, "Input/output error")


def _stop(number: int) -> None:
    if number == 3:
        os.kill(os.getpid(), signal.SIGTERM)


def four_extractions(images: str) -> None:
    """Writes RANK.json into the working folder: of each extraction the type of what was raised ("filled" for
    nothing), its message, and the number of images read by this process. Batches are of one image; the second
    process suffers the faults."""
    rank, folder = int(os.environ["RANK"]), Path.cwd()
    extraction.BATCH_CPU, coordination.EXCHANGE_S = 1, 0.0
    accelerator = start_accelerator(RuntimeConfig(mixed_precision="no", cpu=True))
    spec = Preprocess(image_size=32, resize_size=37)
    manifest = build_manifest(ClassFolders(images), DataConfig(), seed=0)
    transforms = extraction.bank_transforms(DataConfig(), spec, augmented_copies=0, seed=0)
    trunk = FrozenNetwork(
        load_weights("bundled", RESNET18).tensors, RESNET18, precision="no", device=torch.device("cpu")
    )
    found: dict[str, Any] = {}

    def open_bank(name: str) -> Bank:
        return Bank(folder / name, bank_key(weights_sha256="a", form=name, preprocess={}), width=RESNET18.features)

    def attempt(
        name: str, bank: Bank, fault: Callable[[int], None] = _nothing, *, num_images: int | None = None
    ) -> None:
        source = ReadBy(ClassFolders(images), fault if rank == 1 else _nothing)
        rows = extraction.rows_of(source, manifest.samples, transforms)[:num_images]
        try:
            with StopRequest() as stop:
                extraction.fill(accelerator, bank, rows, spec, lambda: trunk, num_workers=0, stop=stop)
            outcome = "filled", str(extraction.features_of(bank, rows)[:].shape)
        except (InputError, Stopped, KeyError) as error:
            outcome = type(error).__name__, str(error)
        found[name] = [*outcome, source.num_read]
        accelerator.wait_for_everyone()

    attempt("one image", open_bank("one image"), num_images=1)
    attempt("broken", open_bank("broken"), _break)
    attempt("stopped", open_bank("stopped"), _stop)

    late = open_bank("late") if rank == 1 else None
    accelerator.wait_for_everyone()
    if rank == 0:  # another run stores everything meanwhile
        names = [row.name for row in extraction.rows_of(manifest.source, manifest.samples, transforms)]
        open_bank("late").writer().add(names, np.zeros((len(names), RESNET18.features), np.float32))
        late = open_bank("late")
    accelerator.wait_for_everyone()
    assert late is not None
    attempt("late", late)
    Path(f"{rank}.json").write_text(json.dumps(found))
    accelerator.end_training()
