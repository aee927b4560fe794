"""Little shared memory, as in a container, and a full disk: the run continues with less."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.mounts import with_small_file_system
from support.runs import small
from torch.utils.data import DataLoader

from headstart.config_io import to_yaml
from headstart.runtime.worker_processes import MIN_SHARED_BYTES, worker_options


def batch_of(items: list[int]) -> dict[str, object]:
    pixels = torch.arange(len(items) * 12, dtype=torch.uint8).reshape(len(items), 2, 2, 3).permute(0, 3, 1, 2)
    return {"pixels": pixels, "label": torch.tensor(items), "pictures": [torch.ones(3, 2, 2)], "seeds": [2**63]}


@pytest.mark.parametrize("shared", [0, MIN_SHARED_BYTES * 4], ids=["pipe", "shared memory"])
def test_batches_are_the_same_whichever_way_they_travel(shared: int) -> None:
    options = worker_options(2, batch_of, prefetch=2, batch_bytes=1000, shared=shared)
    assert (options["collate_fn"] is batch_of) == (shared > 0)
    found = list(DataLoader([5, 6, 7, 8], batch_size=2, **options))
    for items, batch in zip(([5, 6], [7, 8]), found, strict=True):
        expected = batch_of(items)
        assert torch.equal(batch["pixels"], expected["pixels"])
        assert batch["pixels"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch["label"], expected["label"])
        assert torch.equal(batch["pictures"][0], torch.ones(3, 2, 2))
        assert batch["seeds"] == [2**63]
        batch["pixels"][:] = 0  # may be written to


def test_large_batches_need_more_than_the_minimum() -> None:
    options = worker_options(8, batch_of, prefetch=4, batch_bytes=2**26, shared=2 * MIN_SHARED_BYTES)
    assert options["collate_fn"] is not batch_of


@pytest.mark.slow
def test_a_run_needs_no_shared_memory(tiny_data: Path, tmp_path: Path) -> None:
    """With 1 MB torch waits forever for a batch that does not fit; Docker gives 64 MB."""
    config = tmp_path / "config.yaml"
    settings = small(tiny_data, tmp_path / "run", data={"num_workers": 2, "image_size": 96}, train={"epochs": 1})
    config.write_text(to_yaml(settings))
    command = [sys.executable, "-m", "headstart", "train", "--config", str(config)]
    done = subprocess.run(with_small_file_system("/dev/shm", 1, command), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/summary.json").is_file()


FILL = """
import torch
from headstart.data.pixel_cache import CacheLimit, SharedPixels

pixels = SharedPixels(CacheLimit(64 * 2**20, on_disk=True))
image = torch.full((3, 512, 512), 7, dtype=torch.uint8)
for number in range(20):
    pixels.put(str(number), image)
kept = [pixels.get(str(number)) for number in range(20)]
assert all(torch.equal(found, image) for found in kept if found is not None)
print(sum(found is not None for found in kept))
"""


@pytest.mark.slow
def test_on_a_disk_that_is_full_no_more_images_are_kept(tmp_path: Path) -> None:
    """A page of a sparse file that has no place on the disk would end the process by SIGBUS."""
    command = with_small_file_system(tmp_path, 4, [sys.executable, "-c", FILL])
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) <= 5
