"""Seconds until a wrong command is answered, for each command of tests/cli/test_quick_answers.py as its own process.

    python benchmarks/wrong_commands.py

Prints the slowest commands, the median, and the time of `headstart` and `headstart --help`. Needs the extra test.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from cli.test_quick_answers import COMMANDS, prepare  # noqa: E402


def seconds(command: str, folder: Path) -> tuple[float, int]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "headstart", *command.split()], cwd=folder, capture_output=True, check=False
    )
    return time.perf_counter() - started, done.returncode


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        seconds("--help", folder)  # reads the files of the package for the first time
        for command in ("", "--help", "train --help"):
            print(f"{statistics.median(seconds(command, folder)[0] for _ in range(3)):.2f} s  headstart {command}")
        found = {command: seconds(command, folder) for command in COMMANDS}
    times = [took for took, _ in found.values()]
    print(f"{len(times)} wrong commands, exit codes {sorted({code for _, code in found.values()})}")
    print(f"median {statistics.median(times):.2f} s, largest {max(times):.2f} s; the slowest:")
    for command, (took, _) in sorted(found.items(), key=lambda item: -item[1][0])[:5]:
        print(f"{took:.2f} s  headstart {command}")


if __name__ == "__main__":
    main()
