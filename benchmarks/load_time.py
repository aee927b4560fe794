"""How long `import headstart; headstart.load(run)` takes beside `import torch`, in new processes, in turn.

python benchmarks/load_time.py --run runs/first --rounds 9
"""

import argparse
import statistics
import subprocess
import sys

CODE = "import time; t = time.perf_counter(); {work}; print(time.perf_counter() - t, time.process_time())"


def seconds(work: str) -> tuple[float, float]:
    """Of the wall clock, and of the processor with the start of Python, which a busy machine does not lengthen."""
    command = [sys.executable, "-c", CODE.format(work=work)]
    wall, cpu = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(wall), float(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--image", help="an image file: time to its prediction, too")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    load = f"import headstart; model = headstart.load({args.run!r})"
    works = {"import torch": "import torch", "import and load": load}
    if args.image:
        works["import, load, first prediction"] = f"{load}; model.predict({args.image!r})"
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(args.rounds + 1):
        for name, work in works.items():
            spent = seconds(work)
            if number:  # the first round warms the disk
                times[name].append(spent)
    for name, values in times.items():
        for clock, what in enumerate(("wall", "processor")):
            own = [value[clock] for value in values]
            more = [value[clock] - torch[clock] for value, torch in zip(values, times["import torch"], strict=True)]
            print(
                f"{name}, {what}: median {statistics.median(own):.2f} s; "
                f"beyond torch in the same round: median {statistics.median(more):+.2f} s"
            )


if __name__ == "__main__":
    main()
