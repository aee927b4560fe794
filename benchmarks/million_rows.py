"""Fit the exact probe on a synthetic feature bank: seconds, resident memory, gradient norm.

    python benchmarks/million_rows.py --rows 1000000 --classes 10

Writes a bank of rows x 512 random features with class-dependent means into a temporary folder (2 GB for a million),
opens it as a run does (checksums included), and fits one strength. The fit reads the memory maps piece by piece.
"""

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from headstart.features import logistic_regression
from headstart.features.bank import Bank, bank_key, row_name

SHARD_ROWS = 8192
KEY = bank_key(weights_sha256="synthetic", form="synthetic", preprocess={})


def write(folder: str, labels: np.ndarray, num_classes: int) -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 0.15, (num_classes, 512)).astype(np.float32)
    writer = Bank(Path(folder), KEY, width=512).writer()
    for start in range(0, len(labels), SHARD_ROWS):
        part = labels[start : start + SHARD_ROWS]
        rows = np.maximum(rng.standard_normal((len(part), 512), dtype=np.float32) + centres[part], -0.5)
        writer.add([row_name(str(start + i), "eval") for i in range(len(part))], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--l2", type=float, default=100.0)
    parser.add_argument("--dir", default=None, help="where the temporary bank goes")
    args = parser.parse_args()
    labels = np.random.default_rng(0).integers(0, args.classes, args.rows)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:  # so that its memory is not counted
            other.submit(write, folder, labels, args.classes).result()
        opening = time.perf_counter()
        features = Bank(Path(folder), KEY, width=512).rows([row_name(str(i), "eval") for i in range(args.rows)])
        opened = time.perf_counter()
        found = logistic_regression.fit(features, labels, num_classes=args.classes, l2=args.l2)
        ended = time.perf_counter()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{args.rows} x 512, {args.classes} classes: opened and checked in {opened - opening:.1f} s, fitted in "
        f"{ended - opened:.1f} s, {found.iterations} iterations, largest gradient entry {found.gradient_norm:.1e}, "
        f"converged {found.converged}, peak resident memory {peak_gib:.2f} GiB"
    )


if __name__ == "__main__":
    main()
