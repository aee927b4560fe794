"""A short table of finished runs: scripts/table.py RUN [RUN ...]"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main() -> None:
    table = Table("strategy", "accuracy", "95 % interval", "correct", "seconds", "run folder")
    for run in sys.argv[1:]:
        summary = json.loads(Path(run, "summary.json").read_text())
        val = summary["val"]
        low, high = val["accuracy_ci95"]
        table.add_row(
            summary["strategy"],
            f"{100 * val['accuracy']:.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f} %",
            f"{val['correct']} of {val['n']}",
            f"{summary['wall_s']:.0f}",
            run,
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    main()
