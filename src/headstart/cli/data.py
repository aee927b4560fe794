"""`headstart data`, and the options that several commands have for a source of images."""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from headstart.cli.options import command_parser


def data(argv: list[str]) -> None:
    parser = command_parser("data", "Data sets and the feature bank.")
    what = parser.add_subparsers(dest="what", required=True, metavar="check | apply | demo | bank")
    add_parsers(what)
    demo = what.add_parser("demo", help="lay out the solar cells of elpv-dataset as an image folder")
    demo.add_argument("dir", help="folder to create")
    demo.add_argument("--seed", type=int, default=0, help="of the 75/25 split (default: 0)")
    bank = what.add_parser("bank", help="list the feature bank, or delete from it")
    bank.add_argument("--bank", help="its folder; default: in the user's cache folder")
    bank.add_argument("--prune", metavar="KEY", help="delete the keys whose name begins so; all: every one")
    bank.add_argument("--prune_unused", metavar="DAYS", type=float, help="delete the keys not used for so many days")
    args = parser.parse_args(argv)
    match args.what:
        case "check":
            check(args)
        case "apply":
            apply(args)
        case "bank":
            _bank(args.bank, prune_name=args.prune, unused_days=args.prune_unused)
        case "demo":
            _demo(args.dir, seed=args.seed)


def _demo(location: str, *, seed: int) -> None:
    from headstart.data.solar_cells import write_solar_cells

    counts = write_solar_cells(Path(location), seed=seed)
    print(f"{location}: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))


def _bank(location: str | None, *, prune_name: str | None, unused_days: float | None) -> None:
    from headstart.features.bank import default_location
    from headstart.features.bank_keys import prune, stored

    folder = Path(location) if location else default_location()
    if prune_name is not None or unused_days is not None:
        gone = prune(folder, name=prune_name, unused_days=unused_days)
        print(f"{folder}: {len(gone)} deleted, {sum(entry.num_bytes for entry in gone) / 2**20:.1f} MiB")
        return
    entries = stored(folder)
    print(f"{folder}: {len(entries)} keys, {sum(entry.num_bytes for entry in entries) / 2**20:.1f} MiB")
    for entry in entries:
        spec = entry.key.get("preprocess", {})
        days = (time.time() - entry.used) / 86400
        print(
            f"{entry.name}  {entry.num_bytes / 2**20:8.1f} MiB  {entry.num_shards:4d} shards  used {days:.1f} days ago  "
            f"{entry.key.get('form', '?')}, {spec.get('image_size', '?')} px of {spec.get('resize_size', '?')}, "
            f"weights {str(entry.key.get('weights_sha256', '?'))[:8]}"
        )


def add_parsers(what: Any) -> None:
    """what: the sub-parsers of `headstart data`."""
    check = what.add_parser(
        "check",
        help="look at every image of a folder or another source: broken files, copies, leaks, thin classes, wrong labels",
        description="Look at every image and name every fault. Nothing in the data is changed. "
        "The exit code is 0 whatever is found.",
    )
    check.add_argument("dir", help="train/ and val/ of class folders, just class folders, or any other source of train")
    add_columns(check, default="found by name")
    check.add_argument("--out", metavar="FOLDER", help="write doctor.html, doctor.json and fixes.csv there")
    check.add_argument("--labels", action="store_true", help="look for wrong labels, too")
    check.add_argument("--weights", default="bundled", help="as --model.weights of train (default: bundled)")
    check.add_argument("--image_size", type=int, default=224, help="px that the backbone sees (default: 224)")
    check.add_argument("--folds", type=int, default=5, help="of the study of labels (default: 5)")
    check.add_argument("--seed", type=int, default=0, help="of the folds (default: 0)")
    check.add_argument("--bank", help="folder of the feature bank; default: in the user's cache folder")
    apply = what.add_parser(
        "apply",
        help="act on an edited fixes.csv by a new folder of links",
        description="Lay out a new folder of links in which dropped files are missing and moved ones lie elsewhere. "
        "The folder that was checked is never changed.",
    )
    apply.add_argument("fixes", metavar="FIXES.csv", help="written by headstart data check --out, edited by you")
    apply.add_argument("--data", required=True, metavar="DIR", help="the folder that was checked")
    apply.add_argument("--out", required=True, metavar="NEW", help="folder to create")


def add_columns(parser: Any, *, default: str) -> None:
    """The options that name the columns of a table, of shards or of a saved dataset."""
    for key, what in (
        ("image", "names or holds the images"),
        ("label", "has the classes"),
        ("split", "says train or val"),
    ):
        parser.add_argument(f"--{key}_column", metavar="NAME", help=f"where a table {what} (default: {default})")


def columns_of(args: Namespace) -> dict[str, Any]:
    """Those that were given, by their keys in the section data."""
    keys = ("image_column", "label_column", "split_column")
    return {key: getattr(args, key) for key in keys if getattr(args, key) is not None}


def check(args: Namespace) -> None:
    from headstart.config import DataConfig, ModelConfig, ProbeConfig, RunConfig, RuntimeConfig, StrategyConfig

    config = RunConfig(
        seed=args.seed,
        data=DataConfig(root=args.dir, image_size=args.image_size, on_bad_file="skip", **columns_of(args)),
        model=ModelConfig(weights=args.weights),
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(folds=args.folds),
        runtime=RuntimeConfig(bank=args.bank or ""),
    )
    from headstart.data_doctor.command import check_command

    check_command(config, labels=args.labels, out=args.out)


def apply(args: Namespace) -> None:
    from headstart.data_doctor.fixes import apply_fixes

    count = apply_fixes(Path(args.fixes), data=Path(args.data), out=Path(args.out))
    print(f"{args.out}: " + ", ".join(f"{number} {what}" for what, number in count.items() if number))
