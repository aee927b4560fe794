"""kill -9 a training run at random moments until it is done: does it end with the bits of the run that nobody killed?

    python benchmarks/kill_training.py --data hymenoptera_data --runs 20 --kills 2
    python benchmarks/kill_training.py --data hymenoptera_data --runs 1 --kills 50

Small images, one process, fp32, a checkpoint every other step; moments are drawn over the time that an undisturbed run
takes after its start-up, saving included. After every kill the run folder must be readable: its configuration, its
metrics and its model file if there is one; and the next start must begin at the step of the last complete checkpoint.
"""

import argparse
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open


def command(data: Path, out: Path, epochs: int) -> list[str]:
    options = {
        "data.root": data,
        "model.weights": "bundled",
        "data.image_size": 64,
        "train.epochs": epochs,
        "train.checkpoint_steps": 2,
        "train.resume": "auto",
        "runtime.mixed_precision": "no",
        "data.on_bad_file": "skip",
        "runtime.threads": 1,
        "data.num_workers": 0,
        "optim.warmup_epochs": 0,
        "out": out,
    }
    return [
        sys.executable,
        "-u",
        "-m",
        "headstart",
        "train",
        *(part for key, value in options.items() for part in (f"--{key}", str(value))),
    ]


def last_checkpoint(out: Path) -> int:
    steps = [int(path.name[5:]) for path in (out / "checkpoints").glob("step_*") if path.suffix != ".tmp"]
    return max(steps, default=0)


def check_readable(out: Path) -> None:
    """What is there can be read: whoever looks at the folder of a killed run is not lied to."""
    if (out / "model.safetensors").exists():
        with safe_open(out / "model.safetensors", framework="pt") as file:
            assert len(list(file.keys())) == 122
    if (out / "metrics.jsonl").exists():
        whole = [line for line in (out / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
        for line in whole:
            json.loads(line)


def killed_run(data: Path, out: Path, epochs: int, kills: int, usual_s: float, rng: random.Random) -> tuple[int, int]:
    """(kills that hit, of them while a checkpoint was being written)."""
    hit = saving = 0
    while True:
        expected = last_checkpoint(out)
        process = subprocess.Popen(
            command(data, out, epochs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "images," in line:
                break  # the data is described: the network and the loop come next
        if hit < kills:
            time.sleep(rng.uniform(0, usual_s))
            process.kill()
        rest = process.communicate()[0]
        resumed = re.search(r"after step (\d+) of", "".join(said) + rest)
        assert resumed is None or int(resumed[1]) == expected, (resumed, expected)
        if process.returncode == 0:
            return hit, saving
        assert process.returncode == -9, "".join(said) + rest
        hit += 1
        if (out / "summary.json").exists():  # killed when all was written
            return hit, saving
        saving += bool(list((out / "checkpoints").glob("*.tmp")))
        check_readable(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2, help="of each run")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(command(args.data, folder / "straight", args.epochs), check=True, stdout=subprocess.DEVNULL)
        wanted = hashlib.sha256((folder / "straight/model.safetensors").read_bytes()).hexdigest()
        rows = [json.loads(line) for line in (folder / "straight/metrics.jsonl").read_text().splitlines()]
        usual_s = sum(row["time_s"] for row in rows if "epoch" in row) + 1
        same = total = saving = 0
        for number in range(args.runs):
            out = folder / f"killed-{number}"
            hit, in_save = killed_run(args.data, out, args.epochs, args.kills, usual_s, rng)
            total, saving = total + hit, saving + in_save
            found = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
            same += found == wanted
            print(
                f"run {number}: {hit} kills, {in_save} of them in a save, "
                f"final file {'identical' if found == wanted else 'DIFFERS'}",
                flush=True,
            )
    print(
        f"{same} of {args.runs} final files identical (sha256) after {total} kills, {saving} of them in a save; "
        "every folder readable after every kill, no step before the last checkpoint done again"
    )


if __name__ == "__main__":
    main()
