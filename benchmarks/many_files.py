"""Starting a run on many files: the first start, the second one, memory, and images per second against a small folder.

    python benchmarks/many_files.py --files 1000 100000 --dir /a/disk/with/room

Draws JPEG files (160 x 120 px, about 7 kB) into 10 class folders, and starts on them in fresh processes: scan, hash,
decode, split, rows, loader, the first batch. "start" counts from the beginning of the scan to the first batch, memory
is the process's peak beyond what it holds after its imports, decoded images included, and its anonymous memory at the
end without them, images per second are those of the loader (one worker, 64 px views) after 20 batches.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
CHILD = """
import json, resource, sys, time
from headstart.backbones import RESNET18
from headstart.cli.main import prepare_environment
prepare_environment()
import torch
from headstart.config import DataConfig
from headstart.data.loaders import as_dataset, train_loader
from headstart.data.manifest import build_manifest
from headstart.data.sources.open import open_source
from headstart.data.transforms import PixelCache, Preprocess, train_transform
from headstart.data.pixel_cache import cache_limit_for

torch.set_num_threads(1)
data = DataConfig(root=sys.argv[1], image_size=64, num_workers=1, cache=sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
own_before = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
before, started = peak(), time.perf_counter()
transform = train_transform(data, Preprocess.of(data, RESNET18), cache_limit=cache_limit_for(data))
manifest = build_manifest(open_source(data), data, seed=0, cache=PixelCache(train=[transform], val=[transform]))
scanned = time.perf_counter()
samples = manifest.of("train")
rows = as_dataset(samples, manifest.classes)
batches = iter(train_loader(rows, samples.source, transform, batch_size=32, accumulation=1,
                            num_steps=400, start_step=0, seed=0, num_workers=1))
next(batches)
first = time.perf_counter()
for _ in range(20):
    next(batches)
timed = time.perf_counter()
for _ in range(100):
    next(batches)
rate = 3200 / (time.perf_counter() - timed)
# decoded images lie in shared pages: what is anonymous is what the process's tables cost
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
print(json.dumps({"scan_s": scanned - started, "start_s": first - started, "peak_mib": peak() - before,
                  "own_mib": own / 1024 - own_before, "rate": rate, "n": len(manifest.samples)}))
"""


def draw(job: tuple[str, int, int]) -> None:
    folder, first, last = job
    for number in range(first, last):
        rng = np.random.default_rng(number)
        rough = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        path = Path(folder, f"class_{number % CLASSES}", f"{number:07d}.jpg")
        rough.resize((160, 120), Image.Resampling.BICUBIC).save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--dir", default=None, help="where the files go for a while")
    args = parser.parse_args()
    rates = []
    for count in args.files:
        with tempfile.TemporaryDirectory(dir=args.dir) as name:
            root = Path(name, "images")
            for number in range(CLASSES):
                (root / f"class_{number}").mkdir(parents=True)
            jobs = [(str(root), first, min(first + 1000, count)) for first in range(0, count, 1000)]
            with ProcessPoolExecutor() as pool:
                list(pool.map(draw, jobs))
            time.sleep(3)  # so that the last files are trusted by the index
            environment = os.environ | {"XDG_CACHE_HOME": str(Path(name, "cache"))}
            for start, cache in (("first", "auto"), ("second", "auto"), ("third", "off")):
                done = subprocess.run(
                    [sys.executable, "-c", CHILD, str(root), cache], env=environment, check=True, stdout=subprocess.PIPE
                )
                found = json.loads(done.stdout)
                assert found["n"] == count
                rates.append(found["rate"])
                print(
                    f"{count:,} files, {start} start: scan {found['scan_s']:.1f} s, first batch after "
                    f"{found['start_s']:.1f} s, peak {found['peak_mib']:.0f} MiB beyond the imports, "
                    f"{found['own_mib']:.0f} MiB of it not pixels, {found['rate']:.0f} img/s (data.cache {cache})",
                    flush=True,
                )
    print(
        f"images per second, the last folder against the first: {rates[-2] / rates[1]:.2f} (second starts), "
        f"{rates[-1] / rates[2]:.2f} (decoding for every view)"
    )


if __name__ == "__main__":
    main()
