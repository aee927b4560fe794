"""headstart predict on files beside the model itself on tensors in memory, in turn, on the same cores.

    python benchmarks/predict_throughput.py --run runs/first --data hymenoptera_data --times 4 --rounds 5

In memory: torchvision's own resnet18 with the weights of the file, in the precision of the file, on normalised tensors
that are there already, in the fastest of three ways: one process with all threads at batch 64 and 16, and one process
of one thread per core. Predict: the whole command on the images of the folder, named N times, with a parquet file to
write; its rate is what it prints (from the first image on), and the second one counts everything, also the start of
Python.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchvision.models import resnet18

from headstart.model.find_model import find_model
from headstart.model.model_file import read_info
from headstart.runtime.hardware import usable_cores

ROUND_S = 6.0


def own(run: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """torchvision's network as the model was measured, and the side of its images."""
    path = find_model(run)
    info = read_info(path)
    model = resnet18(num_classes=len(info.classes))
    model.load_state_dict(load_file(path), strict=True)
    model = model.eval().to(memory_format=torch.channels_last)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=info.mixed_precision == "bf16"):
            return model(pixels)

    return forward, info.preprocess.image_size


def in_memory(run: str, batch_size: int, threads: int) -> float:
    """Images per second."""
    torch.set_num_threads(threads)
    forward, side = own(run)
    pixels = torch.randn(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    forward(pixels)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < ROUND_S:
        forward(pixels)
        count += batch_size
    return count / (time.perf_counter() - started)


def in_processes(run: str, cores: int) -> float:
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(abs, range(cores)))
        return sum(pool.map(in_memory, [run] * cores, [16] * cores, [1] * cores))


def predict(run: str, names: Path, out: Path) -> tuple[float, float]:
    """Images per second: from the first image on, and of the whole command."""
    count = len(names.read_text().splitlines())
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "predict", run, str(names), "--out", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - started
    rate = re.search(r"just now, (\d+) img/s", done.stdout)
    assert rate, done.stdout
    return float(rate[1]), count / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of .jpg images")
    parser.add_argument("--times", type=int, default=4, help="the images are named so often")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cores = usable_cores()
    shares, whole = [], []
    with tempfile.TemporaryDirectory() as name:
        names = Path(name) / "names.txt"
        found = [str(path.absolute()) for path in sorted(args.data.rglob("*.jpg"))]
        names.write_text("".join(f"{path}\n" for path in found * args.times))
        print(
            f"{len(found)} images, {args.times} times, {read_info(find_model(args.run)).mixed_precision}, {cores} cores"
        )
        for number in range(1, args.rounds + 1):
            ways = {f"{cores} threads, batch {size}": in_memory(args.run, size, cores) for size in (64, 16)}
            ways[f"{cores} processes of 1 thread"] = in_processes(args.run, cores)
            rate, all_in_all = predict(args.run, names, Path(name) / "out.parquet")
            fastest = max(ways.values())
            shares.append(rate / fastest)
            whole.append(all_in_all / fastest)
            told = ", ".join(f"{way} {value:.0f}" for way, value in ways.items())
            print(
                f"round {number}: in memory {told}; predict {rate:.0f} img/s, {shares[-1]:.1%}; "
                f"with its start {all_in_all:.0f}, {whole[-1]:.1%}",
                flush=True,
            )
    print(
        f"medians: {statistics.median(shares):.1%} of the model's own rate, "
        f"with the start of the command {statistics.median(whole):.1%}"
    )


if __name__ == "__main__":
    main()
