"""`headstart data` and `headstart probe`: the commands about a data set."""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.options import add_bad_files, add_columns, check_at_least, columns_of, command_parser

if TYPE_CHECKING:
    from headstart.config import RunConfig


def data(argv: list[str]) -> None:
    parser = command_parser("data", "Data sets and the feature bank.")
    what = parser.add_subparsers(dest="what", required=True, metavar="check | apply | demo | bank")
    check = what.add_parser(
        "check",
        help="examine every image of a source: broken files, copies, leaks, small classes, wrong labels",
        description="Examine every image and report every problem. The data is not changed. "
        "The exit code is 0 whatever is found.",
    )
    check.add_argument("dir", help="train/ and val/ of class folders, just class folders, or any other source of train")
    check.add_argument("--out", metavar="FOLDER", help="folder to write doctor.html, doctor.json and fixes.csv to")
    check.add_argument("--labels", action="store_true", help="search for wrong labels, too")
    _add_backbone(check, weights="bundled", folds="folds that search for wrong labels")
    check.set_defaults(command=_check)
    apply = what.add_parser(
        "apply",
        help="create a new folder of links from an edited fixes.csv",
        description="Create a new folder of links, without dropped files and with moved files in their new place. "
        "The folder that was checked is never changed.",
    )
    apply.add_argument("fixes", metavar="FIXES.csv", help="written by headstart data check --out, edited by you")
    apply.add_argument("--data", required=True, metavar="DIR", help="the folder that was checked")
    apply.add_argument("--out", required=True, metavar="NEW", help="folder to create")
    apply.set_defaults(command=_apply)
    demo = what.add_parser("demo", help="write the solar cells of elpv-dataset as an image folder")
    demo.add_argument("dir", help="folder to create")
    demo.add_argument("--seed", type=int, default=0, help="seed of the 75/25 split (default: 0)")
    demo.set_defaults(command=_demo)
    bank = what.add_parser("bank", help="list the feature bank, or delete from it")
    bank.add_argument("--bank", metavar="FOLDER", help="its folder (default: in the user's cache folder)")
    bank.add_argument("--prune", metavar="KEY", help="delete the keys whose names begin with KEY, or all")
    bank.add_argument("--prune_unused", metavar="DAYS", type=float, help="delete the keys not used for this many days")
    bank.set_defaults(command=_bank)
    args = parser.parse_args(argv)
    args.command(args)


def probe(argv: list[str]) -> None:
    parser = command_parser("probe", "Cross-validated accuracy and learning curve of a frozen backbone on a data set.")
    parser.add_argument("dir", help="image folder or another source; train and val are used as one set of images")
    _add_backbone(parser, weights="imagenet", folds="folds of the cross-validation")
    parser.add_argument("--repeats", type=int, default=5, help="cross-validations, each with other folds (default: 5)")
    add_bad_files(parser)
    parser.add_argument("--out", help=".json file to write the results to")
    args = parser.parse_args(argv)
    check_at_least(args, repeats=1)
    # the split is irrelevant here, so a source without val will do
    config = _config(args, split="stratified", on_bad_file=args.on_bad_file)
    from headstart.diagnostics.probe import probe_command

    probe_command(config, repeats=args.repeats, out=args.out)


def _add_backbone(parser: ArgumentParser, *, weights: str, folds: str) -> None:
    """What the features of a source depend on, for `_config`. weights: the default; folds: what they are for."""
    add_columns(parser, default="found by name")
    parser.add_argument(
        "--weights", default=weights, help=f"backbone, as --model.weights of train (default: {weights})"
    )
    parser.add_argument("--image_size", type=int, default=224, help="side of the image that it sees, px (default: 224)")
    parser.add_argument("--folds", type=int, default=5, help=f"{folds} (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the folds (default: 0)")
    parser.add_argument("--bank", metavar="FOLDER", help="feature bank (default: in the user's cache folder)")


def _config(args: Namespace, **data: Any) -> "RunConfig":
    from headstart.config import DataConfig, ModelConfig, ProbeConfig, RunConfig, RuntimeConfig, StrategyConfig

    return RunConfig(
        seed=args.seed,
        data=DataConfig(root=args.dir, image_size=args.image_size, **data, **columns_of(args)),
        model=ModelConfig(weights=args.weights),
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(folds=args.folds),
        runtime=RuntimeConfig(bank=args.bank or ""),
    )


def _check(args: Namespace) -> None:
    from headstart.data_doctor.command import check_command

    check_command(_config(args, on_bad_file="skip"), labels=args.labels, out=args.out)


def _apply(args: Namespace) -> None:
    from headstart.data_doctor.fixes import apply_fixes

    count = apply_fixes(Path(args.fixes), data=Path(args.data), out=Path(args.out))
    print(f"{args.out}: " + ", ".join(f"{number} {what}" for what, number in count.items() if number))


def _demo(args: Namespace) -> None:
    from headstart.data.solar_cells import write_solar_cells

    counts = write_solar_cells(Path(args.dir), seed=args.seed)
    print(f"{args.dir}: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))


def _bank(args: Namespace) -> None:
    from headstart.features.bank import default_location
    from headstart.features.bank_keys import prune, stored

    folder = Path(args.bank) if args.bank else default_location()
    if args.prune is not None or args.prune_unused is not None:
        gone = prune(folder, name=args.prune, unused_days=args.prune_unused)
        print(f"{folder}: {len(gone)} deleted, {sum(entry.num_bytes for entry in gone) / 2**20:.1f} MiB")
        return
    entries = stored(folder)
    print(f"{folder}: {len(entries)} keys, {sum(entry.num_bytes for entry in entries) / 2**20:.1f} MiB")
    for entry in entries:
        spec = entry.key.get("preprocess", {})
        days = (time.time() - entry.used) / 86400
        print(
            f"{entry.name}  {entry.num_bytes / 2**20:8.1f} MiB  {entry.num_shards:4d} shards  used {days:.1f} days ago"
            f"  {entry.key.get('form', '?')}, {spec.get('image_size', '?')} px of {spec.get('resize_size', '?')}, "
            f"weights {str(entry.key.get('weights_sha256', '?'))[:8]}"
        )
