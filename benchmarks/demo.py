"""Work and duration of each stage of `headstart demo`, in a new folder and with an empty cache.

    python benchmarks/demo.py
    taskset -c 0 python benchmarks/demo.py                                           # one core
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/demo.py       # an older processor

Prints what the demo prints, then a table: GFLOP of the networks, seconds, and processor seconds with all child
processes. The start includes the imports and the measurement of the speed.
"""

import os
import tempfile
import time
from pathlib import Path

from headstart.cli.demo import run_demo
from headstart.cli.main import prepare_environment
from headstart.cli.output import printed_messages
from headstart.demo import Demo, Plan


def main() -> None:
    prepare_environment()
    plan = Plan()
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place
        folder = Path(place, "demo")
        stages = Demo(folder, plan).stages()
        started = time.perf_counter()
        with printed_messages():
            took = run_demo(folder, plan)
        total = time.perf_counter() - started
    rows = {"start": (0.0, total - sum(took.values()))} | {
        stage.title: (stage.gflop, took[stage.title]) for stage in stages
    }
    print(f"\n{'stage':24} {'GFLOP':>6} {'seconds':>8}")
    for title, (gflop, seconds) in rows.items():
        print(f"{title:24} {gflop:6.0f} {seconds:8.1f}")
    print(f"{'total':24} {sum(gflop for gflop, _ in rows.values()):6.0f} {total:8.1f}")
    used = os.times()
    print(f"processor seconds: {used.user + used.system + used.children_user + used.children_system:.0f}")


if __name__ == "__main__":
    main()
