"""The data doctor on a drawn folder of 2,000 good images with 20 faults of every kind, and on 2,000 hostile files.

    python benchmarks/planted_faults.py --good 2000 --each 20
    python benchmarks/planted_faults.py --hostile 2000

Says which planted faults were not found, and which findings were not planted; of the hostile files the time and memory.
"""

import argparse
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.planting import CLASSES, good_folder, hostile, plant

from headstart.config import DataConfig, ModelConfig, RunConfig, RuntimeConfig
from headstart.data.sources.folders import ClassFolders
from headstart.data_doctor.check import check_files
from headstart.data_doctor.inspection import inspect


def planted(root: Path, *, good: int, each: int, bank: str) -> None:
    train, val = good * 8 // 10 // len(CLASSES), good * 2 // 10 // len(CLASSES)
    good_folder(root, train=train, val=val)
    expected = plant(root, each=each)
    config = RunConfig(model=ModelConfig(weights="bundled"), runtime=RuntimeConfig(bank=bank))
    started = time.perf_counter()
    report = inspect(replace(config, data=DataConfig(root=str(root))), labels=False)
    seconds = time.perf_counter() - started
    found = {(finding.kind, finding.paths) for finding in report.result.findings}
    print(
        f"{(train + val) * len(CLASSES)} good images, {len(expected)} planted faults "
        f"of {len({k for k, _ in expected})} "
        f"kinds in {report.checked.num_files} files: {len(expected & found)} found, {seconds:.0f} s"
    )
    for kind, count in Counter(kind for kind, _ in expected).items():
        print(f"  {kind}: {sum((kind, paths) in found for k, paths in expected if k == kind)} of {count}")
    print(f"not found: {sorted(expected - found) or 'none'}")
    print(f"not planted: {sorted(found - expected) or 'none'}")


def attacked(root: Path, *, count: int) -> None:
    (root / "a").mkdir(parents=True)
    for number in range(count):
        name, data = hostile(number)
        (root / "a" / name).write_bytes(data)
    warnings.filterwarnings("ignore", module="PIL")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    checked = check_files(ClassFolders(str(root)))
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    kinds = Counter(finding.kind for finding in checked.findings)
    print(
        f"{checked.num_files} hostile files: {len(checked.good)} decode, {dict(kinds)}; {seconds:.1f} s, "
        f"the peak of resident memory grew by {grown:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=int, default=0)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--hostile", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.good:
            planted(Path(name) / "planted", good=args.good, each=args.each, bank=str(Path(name) / "bank"))
        if args.hostile:
            attacked(Path(name) / "hostile", count=args.hostile)


if __name__ == "__main__":
    main()
