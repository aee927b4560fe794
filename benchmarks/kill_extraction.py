"""Kill -9 at random moments of a whole run on the feature bank; the bank must be right, and the work kept.

    python benchmarks/kill_extraction.py --data hymenoptera_data --kills 10

Every attempt is the same command, killed with its workers at a moment drawn evenly from the time that an undisturbed
run takes: it imports, scans, extracts, merges, solves or writes its run folder by then. The next attempt continues on
the same bank and run folder; after one that came to its end a new series begins with empty ones. Every series is left
to end, and its head is compared byte by byte with that of the undisturbed run.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors.numpy import load_file


def start(data: Path, folder: Path, rest: list[str]) -> subprocess.Popen:
    """The command, in a process group of its own; bank and run folder are below `folder`."""
    arguments = [
        "--config",
        "frozen_head",
        "--data.root",
        data,
        "--model.weights",
        "bundled",
        "--train.resume",
        "auto",
        "--runtime.bank",
        folder / "bank",
        "--out",
        folder / "run",
        *rest,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "headstart", "train", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def rows(bank: Path) -> int:
    """How many features there are, by reading and checking every shard."""
    from headstart.features.bank import Bank

    key = next(bank.glob("*/key.json"), None)
    if key is None:
        return 0
    opened = Bank(bank, json.loads(key.read_text()), width=512)
    assert not opened.damaged, opened.damaged
    return len(opened)


def where(folder: Path, *, before: int, total: int) -> str:
    """What the attempt was doing when it was killed, as far as its files say."""
    now = rows(folder / "bank")
    if (folder / "run" / "summary.json").exists():
        return "after its end"
    if (folder / "run").exists() and now == total:
        return "writing the run folder"
    if now == total:
        return "between the last feature and the run folder"
    return "extracting" if now > before else "before its first feature"


def head(folder: Path) -> dict[str, bytes]:
    tensors = load_file(folder / "run" / "model.safetensors")
    return {name: tensors[name].tobytes() for name in ("fc.weight", "fc.bias")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, rest = parser.parse_known_args()  # what is not known goes to headstart train
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        undisturbed = Path(name) / "undisturbed"
        started = time.perf_counter()
        assert start(args.data, undisturbed, rest).wait() == 0
        whole_s = time.perf_counter() - started
        total, expected = rows(undisturbed / "bank"), head(undisturbed)
        killed: Counter[str] = Counter()
        kept: list[list[int]] = [[]]

        def end(series: Path) -> None:
            assert start(args.data, series, rest).wait() == 0
            assert rows(series / "bank") == total
            assert head(series) == expected, f"series {len(kept)} ended with another head"

        while killed.total() < args.kills:
            series = Path(name) / f"series-{len(kept)}"
            before = rows(series / "bank")
            process = start(args.data, series, rest)
            try:
                code = process.wait(timeout=moments.uniform(0, whole_s))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            assert code in (0, -signal.SIGKILL), code
            assert rows(series / "bank") >= before
            if code == 0:
                end(series)
                kept.append([])
            else:
                killed[where(series, before=before, total=total)] += 1
                kept[-1].append(rows(series / "bank"))
        end(Path(name) / f"series-{len(kept)}")
    print(
        f"killed {', '.join(f'{times} x {moment}' for moment, times in killed.most_common())}, within {whole_s:.1f} s "
        f"each; rows kept after each kill, by series: {kept} of {total}; no shard damaged; all heads identical"
    )


if __name__ == "__main__":
    main()
