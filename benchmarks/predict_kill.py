"""Kill -9 headstart predict many times at random moments over 20,000 images; every image must be there exactly once.

    python benchmarks/predict_kill.py --images 20000 --kills 8

The images are drawn, small, and a hundredth of them is none. Each attempt is the whole command on the same folder of
parts, killed with its workers; then it is left to end, and its table is compared with that of a run into one file that
nobody disturbed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


def draw(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"{number % 100:02d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 100 == 99:
            path.write_bytes(b"no image")
        else:
            pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 48)).save(path)


def start(run: str, images: Path, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "headstart", "predict", run, str(images), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--part_rows", type=int, default=256)
    parser.add_argument("--longest_s", type=float, default=30, help="from the first part of an attempt to its kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--undisturbed", action="store_true", help="also a run that nobody kills, and compare the tables"
    )
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        images, out = Path(name) / "images", Path(name) / "parts"
        draw(images, args.images)
        kept: list[int] = []
        for _ in range(args.kills):
            before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
            process = start(args.run, images, "--out", f"{out}/", "--part_rows", args.part_rows)
            while process.poll() is None and len(list(out.glob("part-*"))) == len(before):
                time.sleep(0.02)
            time.sleep(moments.uniform(0, args.longest_s))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
            assert {part: after[part] for part in before} == before, "a finished part was touched"
            kept.append(len(after))
            print(f"killed with {len(after)} parts", flush=True)
        assert start(args.run, images, "--out", f"{out}/", "--part_rows", args.part_rows).wait() == 0
        table = pq.read_table(out)
        rows = table["path"].to_pylist()
        listed = sorted(str(path) for path in images.rglob("*.jpg"))
        once = sorted(rows) == listed and len(set(rows)) == len(rows)
        unread = sum(error is not None for error in table["error"].to_pylist())
        print(
            f"{len(rows)} rows for {len(listed)} images, each exactly once: {once}, in order: {rows == listed}; "
            f"{unread} unreadable, {len(listed) // 100} are"
        )
        if args.undisturbed:
            single = Path(name) / "single.parquet"
            assert start(args.run, images, "--out", single).wait() == 0
            print(f"identical to the table of a run that nobody disturbed: {pq.read_table(single).equals(table)}")
        assert once


if __name__ == "__main__":
    main()
