"""Kill -9 in the middle of extraction, many times at random moments; the bank must be right and the work kept.

    python benchmarks/kill_extraction.py --data hymenoptera_data --kills 10

Every attempt is the whole command on the same bank, killed with its workers at a random moment of the extraction.
Then the run is left to end, and its head is compared byte by byte with that of a run that nobody disturbed.
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

from safetensors.numpy import load_file


def start(data: Path, bank: Path, out: Path) -> subprocess.Popen:
    arguments = ["--config", "frozen_head", "--data.root", data, "--model.weights", "bundled", "--runtime.bank", bank]
    return subprocess.Popen(
        [sys.executable, "-m", "headstart", "train", *map(str, arguments), "--out", str(out)],
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def rows(bank: Path) -> int:
    """How many features there are, by reading and checking every shard."""
    from headstart.features import Bank

    key = next(bank.glob("*/key.json"), None)
    if key is None:
        return 0
    import json

    opened = Bank(bank, json.loads(key.read_text()), width=512)
    assert not opened.damaged, opened.damaged
    return len(opened)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed, bank = folder / "undisturbed", folder / "bank"
        assert start(args.data, folder / "other", undisturbed).wait() == 0
        total = rows(folder / "other")
        kept = []
        for number in range(args.kills):
            before = rows(bank)
            process = start(args.data, bank, folder / f"killed-{number}")
            # the first feature of this attempt, and then a random moment; near the end as likely as near the start
            while process.poll() is None and rows(bank) == before and before < total:
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 0.6))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kept.append(rows(bank))
            assert kept[-1] >= before
        assert start(args.data, bank, folder / "last").wait() == 0
        heads = [load_file(run / "model.safetensors") for run in (undisturbed, folder / "last")]
        same = all((heads[0][tensor] == heads[1][tensor]).all() for tensor in ("fc.weight", "fc.bias"))
    print(f"rows kept after each kill: {kept} of {total}; no shard damaged; final head identical: {same}")


if __name__ == "__main__":
    main()
