"""Copies of training images put into val, re-encoded, resized, mirrored: how many does the data doctor name?

    python benchmarks/planted_leaks.py --data hymenoptera_data --copies 10

The folder is laid out anew as links; the copies are spread evenly over the training images of all classes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.planting import altered

from headstart.config import DataConfig, ModelConfig, RunConfig, RuntimeConfig
from headstart.data.decode import decode
from headstart.data_doctor.inspection import inspect
from headstart.predict.image_paths import images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder with train/ and val/")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--bank", default="", help="default: in the user's cache folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        for split in ("train", "val"):
            for path in [Path(image.path) for image in images([str(args.data / split)])]:
                place = root / path.relative_to(args.data)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(path.resolve())
        sources = [Path(image.path) for image in images([str(root / "train")])]
        leaks = set()
        for k in range(args.copies):
            source = sources[k * len(sources) // args.copies]
            data = altered(decode(source.read_bytes()), k)
            suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
            copy = root / "val" / source.parent.name / f"copy_{k}{suffix}"
            copy.write_bytes(data)
            leaks.add((source.relative_to(root).as_posix(), copy.relative_to(root).as_posix()))
        config = RunConfig(
            data=DataConfig(root=str(root)), model=ModelConfig(weights="bundled"), runtime=RuntimeConfig(bank=args.bank)
        )
        report = inspect(config, labels=False)
        groups = [set(f.paths) for f in report.result.findings if f.kind == "near_duplicate_across_splits"]
        named = [leak for leak in leaks if any(set(leak) <= group for group in groups)]
        print(f"{len(named)} of {len(leaks)} leaks named; near-duplicates across splits in all: {len(groups)} groups")


if __name__ == "__main__":
    main()
