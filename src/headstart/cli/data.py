"""`headstart data` and `headstart probe`: the commands about a data set."""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.options import Parser, add_bad_files, add_columns, check_at_least, columns_of, command_parser

if TYPE_CHECKING:
    from headstart.config import RunConfig


def data_parser() -> Parser:
    parser = command_parser(
        "data",
        "Check and clean a data set, write the demo data, or manage the feature bank. Each has its own help, such as "
        "headstart data check --help.",
        "check photos --labels --out checked",
        "apply checked/fixes.csv --data photos --out photos_clean",
        "demo solar_cells",
    )
    what = parser.add_subparsers(dest="what", required=True, metavar="check | apply | demo | bank")

    def add(name: str, short: str, purpose: str, *examples: str) -> Parser:
        lines = [f"{parser.prog} {name} {example}".rstrip() for example in examples]
        added: Parser = what.add_parser(name, help=short, description=purpose, examples=lines)
        return added

    check = add(
        "check",
        "Report of all problems: broken files, copies, leaks, small classes, wrong labels.",
        "Examine every image and report every problem: broken files, copies, leaks, small classes, wrong labels. The "
        "data is not changed, and the exit code is 0 whatever is found.",
        "photos",
        "photos --labels --out checked",
        "labels.csv --image_column file --label_column species",
    )
    check.add_argument("dir", metavar="SOURCE", help="Folder, table or other source, as data.root of headstart train.")
    check.add_argument(
        "--out", metavar="FOLDER", help="Folder for doctor.html, doctor.json and fixes.csv (default: none)."
    )
    check.add_argument("--labels", action="store_true", help="Search for wrong labels as well.")
    _add_backbone(check, weights="bundled", folds="Folds of the search for wrong labels")
    check.set_defaults(command=_check)
    apply = add(
        "apply",
        "New folder of links according to an edited fixes.csv.",
        "Create a new folder of links, without dropped files and with moved files in their new place. The folder that "
        "was checked is never changed.",
        "checked/fixes.csv --data photos --out photos_clean",
        "fixes.csv --data photos --out /data/photos_clean",
        "reviewed.csv --data photos/original --out photos/clean",
    )
    apply.add_argument("fixes", metavar="FIXES.csv", help="File of headstart data check --out, edited by you.")
    apply.add_argument("--data", required=True, metavar="DIR", help="Folder that was checked.")
    apply.add_argument("--out", required=True, metavar="NEW", help="Folder to create.")
    apply.set_defaults(command=_apply)
    demo = add(
        "demo",
        "Demo data: 2,624 images of solar cells.",
        "Write the 2,624 solar cells of elpv-dataset as an image folder. Needs the extra demo (pip install "
        "'headstart[demo]').",
        "solar_cells",
        "data/solar_cells",
        "solar_cells_1 --seed 1",
    )
    demo.add_argument("dir", metavar="DIR", help="Folder to create.")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of the 75/25 split (default: 0).")
    demo.set_defaults(command=_demo)
    bank = add(
        "bank",
        "Content of the feature bank, or deletion from it.",
        "List the keys of the feature bank with their sizes, or delete some of them.",
        "",
        "--prune_unused 30",
        "--prune all",
    )
    bank.add_argument("--prune", metavar="KEY", help="Deletion of the keys whose names begin with KEY, or of all.")
    bank.add_argument(
        "--prune_unused", metavar="DAYS", type=float, help="Deletion of the keys that were not used for DAYS days."
    )
    bank.add_argument("--bank", metavar="FOLDER", help="Folder of the bank (default: in the user's cache folder).")
    bank.set_defaults(command=_bank)
    return parser


def data(argv: list[str]) -> None:
    parser = data_parser()
    args = parser.parse_args(argv)
    args.command(args)


def probe_parser() -> Parser:
    parser = command_parser(
        "probe",
        "Estimate the accuracy of a frozen backbone on a data set in seconds, by cross-validation and with a learning "
        "curve. Only the features are stored.",
        "photos",
        "photos --weights bundled --out probe.json",
        "labels.csv --image_column file --label_column species",
    )
    parser.add_argument(
        "dir",
        metavar="SOURCE",
        help="Folder, table or other source, as data.root of headstart train; train and val are used as one set.",
    )
    parser.add_argument("--out", metavar="FILE.json", help="File for the results (default: none).")
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="Cross-validations, each with other folds (default: 5)."
    )
    add_bad_files(parser)
    _add_backbone(parser, weights="imagenet", folds="Folds of the cross-validation")
    return parser


def probe(argv: list[str]) -> None:
    parser = probe_parser()
    args = parser.parse_args(argv)
    check_at_least(args, repeats=1)
    # the split is irrelevant here, so a source without val will do
    config = _config(args, split="stratified", on_bad_file=args.on_bad_file)
    from headstart.diagnostics.probe import probe_command

    probe_command(config, repeats=args.repeats, out=args.out)


def _add_backbone(parser: ArgumentParser, *, weights: str, folds: str) -> None:
    """What the features of a source depend on, for `_config`. weights: the default; folds: what they are for."""
    add = parser.add_argument_group("Features").add_argument
    add("--weights", default=weights, metavar="NAME", help=f"Weights, as model.weights of train (default: {weights}).")
    add("--image_size", type=int, default=224, metavar="N", help="Side of the input, in pixels (default: 224).")
    add("--folds", type=int, default=5, metavar="N", help=f"{folds} (default: 5).")
    add("--seed", type=int, default=0, metavar="N", help="Seed of the folds (default: 0).")
    add("--bank", metavar="FOLDER", help="Folder of the feature bank (default: in the user's cache folder).")
    add_columns(parser, default="found by name")


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
    from headstart.cli.print_results import file_progress, print_data_report
    from headstart.data_doctor.command import check_data

    config = _config(args, on_bad_file="skip")
    found = check_data(config, labels=args.labels, out=args.out, progress=file_progress)
    print_data_report(found, out=args.out)


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
