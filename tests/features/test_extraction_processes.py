"""Several processes fill one bank, each its share, and one solves for the head."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import small

from headstart.parsing import to_yaml
from headstart.start import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# what each of two processes sees of four extractions in a row: (what was raised, what it said, batches begun here)
FOUR = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
import torch
from headstart import extract
from headstart.config import DataConfig, RuntimeConfig
from headstart.data.folders import ClassFolders
from headstart.data.manifest import build_manifest
from headstart.errors import InputError, Stopped
from headstart.features import Bank, bank_key
from headstart.preprocess import Preprocess
from headstart.runtime import StopRequest, start_accelerator
from headstart.trunk import FEATURES, FrozenTrunk
from headstart.weights import load_weights

rank, folder = int(os.environ["RANK"]), Path(sys.argv[2])
extract.BATCH_CPU, extract.EXCHANGE_S = 1, 0.0
accelerator = start_accelerator(RuntimeConfig(mixed_precision="no", cpu=True))
spec = Preprocess(image_size=32, resize_size=37)
manifest = build_manifest(ClassFolders(sys.argv[1]), DataConfig(), seed=0)
rows = extract.rows_of(manifest.source, manifest.samples, extract.views_of(DataConfig(), spec, num_views=0, seed=0))
trunk = FrozenTrunk(load_weights("bundled").tensors, precision="no", device=torch.device("cpu"))
begun, harm, original = 0, lambda: None, extract._Work.__getitem__

def harmed(self, index):
    global begun
    begun += 1
    return original(self, index)
extract._Work.__getitem__ = harmed
decoded = extract._Work._decoded
def read(self, row):
    if rank == 1:
        harm()
    return decoded(self, row)
extract._Work._decoded = read

def open_bank(name):
    return Bank(folder / name, bank_key(weights_sha256="a", form=name, preprocess={}), width=FEATURES)

seen = {}
def attempt(name, rows, bank):
    global begun
    begun = 0
    try:
        with StopRequest() as stop:
            extract.fill(accelerator, bank, rows, spec, lambda: trunk, num_workers=0, stop=stop)
        found = "filled", str(extract.features_of(bank, rows)[:].shape)
    except (InputError, Stopped, KeyError) as error:
        found = type(error).__name__, str(error)
    seen[name] = [*found, begun]
    accelerator.wait_for_everyone()

attempt("one row", rows[:1], open_bank("one row"))

def broken():
    raise OSError(5, "Input/output error")
harm = broken
attempt("broken", rows, open_bank("broken"))

def told():
    if begun == 3:
        os.kill(os.getpid(), signal.SIGTERM)
harm = told
attempt("stopped", rows, open_bank("stopped"))

late = open_bank("late") if rank == 1 else None
accelerator.wait_for_everyone()
if rank == 0:  # another run stores everything meanwhile
    open_bank("late").writer().add([row.name for row in rows], np.zeros((len(rows), FEATURES), np.float32))
    late = open_bank("late")
accelerator.wait_for_everyone()
attempt("late", rows, late)
(folder / f"{rank}.json").write_text(json.dumps(seen))
accelerator.end_training()
"""


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=cwd, capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def test_the_processes_agree_between_batches_and_not_at_the_end_of_their_shares(tiny_data, tmp_path):
    (tmp_path / "four.py").write_text(FOUR)
    done = torchrun(tmp_path / "four.py", tiny_data, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    share = 26  # batches of one image
    assert first["one row"] == ["filled", "(1, 512)", 1]
    assert second["one row"] == ["filled", "(1, 512)", 0]
    for name, raised, said, most in (
        ("broken", "InputError", "was readable when the run began and is not now: [Errno 5] Input/output error", 2),
        ("stopped", "Stopped", "while computing features; those that are finished are kept", 4),
    ):
        assert first[name][0] == second[name][0] == raised
        assert said in first[name][1]
        assert said in second[name][1]
        assert 1 <= first[name][2] <= most < share, (name, first[name])
    assert len(list((tmp_path / "stopped").glob("*/*.safetensors"))) == 2  # one merged file of each process
    assert first["late"] == second["late"] == ["filled", "(51, 512)", 0]


def test_two_processes_share_the_extraction_and_end_with_the_file_of_one(tiny_data, tmp_path):
    config = small(
        tiny_data, tmp_path / "one", strategy="frozen_head", runtime={"bank": str(tmp_path / "a"), "cpu": True}
    )
    config = replace(config, strategy=replace(config.strategy, features="bank"))
    single = run(config)
    two = replace(config, out=str(tmp_path / "two"), runtime=replace(config.runtime, bank=str(tmp_path / "b")))
    (tmp_path / "config.yaml").write_text(to_yaml(two))
    done = torchrun("-m", "headstart", "train", "--config", tmp_path / "config.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "51 computed" in done.stdout
    shards = list((tmp_path / "b").glob("*/*.safetensors"))
    assert len(shards) == 2  # one merged file of each process
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["world_size"] == 2
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
