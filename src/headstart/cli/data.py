"""`headstart data` and `headstart choose`: the commands about a data set."""

import contextlib
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli import options
from headstart.cli.options import Parser, command_parser
from headstart.files import check_local
from headstart.launcher import is_first_process, num_processes
from headstart.wording import command_line, plural

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
    add = parser.commands("check | apply | demo | bank")
    check = add(
        "check",
        "Report of all problems: broken files, copies, leaks, small classes, wrong labels.",
        "Examine every image and report every problem: broken files, copies, leaks, small classes, wrong labels. The "
        "data is not changed, and the exit code is 0 whatever is found.",
        "photos",
        "photos --labels --out checked",
        "labels.csv --image_column file --label_column species",
    )
    check.add_argument("dir", metavar="SOURCE", help="Folder, table or other source, as for train.")
    check.add_argument(
        "--out",
        metavar="FOLDER",
        help="Folder for doctor.html, doctor.json, fixes.csv, and groups.csv, the list of copies and near copies "
        "(default: none).",
    )
    check.add_argument("--labels", action="store_true", help="Additional search for wrong labels.")
    check.add_argument(
        "--excel", action="store_true", help=f"fixes.csv and groups.csv for spreadsheet programs: {options.EXCEL}."
    )
    _add_backbone(check, weights="bundled", folds="Folds of the search for wrong labels")
    check.set_defaults(command=_check)
    apply = add(
        "apply",
        "New folder of links according to an edited fixes.csv.",
        "Apply an edited fixes.csv: create a new folder of links to the checked files, where those marked drop are "
        "left out and those marked move FOLDER are in that folder. The checked folder never changes.",
        "checked/fixes.csv --data photos --out photos_clean",
        "fixes.csv --data photos --out /data/photos_clean",
        "reviewed.csv --data photos/original --out photos/clean",
    )
    apply.add_argument(
        "fixes", metavar="FIXES.csv", help="The fixes.csv of headstart data check --out, with your edits."
    )
    apply.add_argument("--data", required=True, metavar="DIR", help="Folder that was checked.")
    apply.add_argument("--out", required=True, metavar="NEW", help="Folder to create.")
    apply.set_defaults(command=_apply)
    demo = add(
        "demo",
        "Demo data: 2,624 images of solar cells.",
        "Write the 2,624 solar cell images of elpv-dataset as an image folder. Needs the extra demo (pip install "
        "'headstart[demo]').",
        "solar_cells",
        "some_solar_cells --images 800 --val_fraction 0.5",
        "solar_cells_1 --seed 1",
    )
    demo.add_argument("dir", metavar="DIR", help="Folder to create.")
    demo.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="Number of images to draw, with the same shares of classes and cell types (default: all).",
    )
    options.add_number(demo, "--val_fraction", 0.25, "Share of the images that is held out for validation", metavar="X")
    options.add_number(demo, "--seed", 0, "Seed of the split")
    demo.set_defaults(command=_demo)
    bank = add(
        "bank",
        "Content of the feature bank, or deletion of parts of it.",
        "List the entries of the feature bank, where headstart stores features, with their sizes, or delete some. An "
        "entry, named by its key, holds the features of all images for one backbone and one preprocessing.",
        "",
        "--prune_unused 30",
        "--prune all",
    )
    bank.add_argument("--prune", metavar="KEY", help="Entries to delete: those whose keys begin with KEY, or all.")
    bank.add_argument(
        "--prune_unused", metavar="DAYS", type=float, help="Entries to delete: those that were not used for DAYS days."
    )
    bank.add_argument("--bank", metavar="FOLDER", help="Folder of the bank (default: in the user's cache folder).")
    bank.set_defaults(command=_bank)
    return parser


def data(argv: list[str]) -> None:
    args = data_parser().parse_args(argv)
    args.command(args)


def choose_parser() -> Parser:
    parser = command_parser(
        "choose",
        "Choose a backbone: compare candidates by cross-validation of a linear probe on the training images, and print "
        "the command that trains the best one. Resumes if interrupted.",
        "photos",
        "photos --backbones resnet18 lite0 --sizes 160 224 288 --out runs/choice",
        "labels.csv --image_column file --label_column species --json",
    )
    parser.add_argument("dir", metavar="SOURCE", help="Folder, table or other source, as for train.")
    parser.add_argument(
        "--backbones",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Backbones, as for --model.backbone (default: resnet18, and lite0, lite1 and lite2 if their weights are "
        "installed).",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="Sides of the square network input, in pixels; each backbone is a candidate at each size (default: the "
        "size of the backbone).",
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="Weights of all candidates, as for --model.weights (default: imagenet; for resnet18 bundled if imagenet "
        "is not on this machine; for timm:NAME hub).",
    )
    parser.add_argument("--out", metavar="RUN", help="Folder for choose.json and choose.html (default: none).")
    options.add_json(parser)
    options.add_bad_files(parser)
    group = parser.add_argument_group("Cross-validation")
    add = group.add_argument
    options.add_number(group, "--folds", 5, "Folds of the cross-validation")
    add(
        "--repeats",
        type=int,
        metavar="N",
        help="Repetitions of the cross-validation, each with other folds (default: 5 for up to 400 images, 1 from "
        "2,000 on).",
    )
    options.add_number(group, "--images", 10_000, "Largest number of training images; more are sampled")
    options.add_number(group, "--seed", 0, "Seed of the split and of the folds")
    add(
        "--split",
        choices=["folder", "stratified", "stable"],
        help="Way to split the images into train and val, as for --data.split; only train is used (default: folder, or "
        "stratified with groups).",
    )
    add(
        "--groups",
        default="",
        metavar="TEXT",
        help="Groups of images that share a fold, as for --data.groups (default: none).",
    )
    add("--bank", metavar="FOLDER", help="Folder of the feature bank (default: in the user's cache folder).")
    columns = options.add_columns(parser, default="found by name")
    columns.add_argument(
        "--group_column", metavar="NAME", help="Column with groups of images that share a fold (default: none)."
    )
    return parser


def choose(argv: list[str]) -> None:
    parser = choose_parser()
    args = parser.parse_args(argv)
    from headstart.selection.options import check_backbones, check_places, config_of

    config = config_of(
        args.dir,
        on_bad_file=args.on_bad_file,
        split=args.split,
        groups=args.groups,
        columns=options.columns_of(args) | ({"group_column": args.group_column} if args.group_column else {}),
        folds=args.folds,
        seed=args.seed,
        bank=args.bank,
    )
    check_backbones(args.backbones)
    if num_processes() == 1:  # several processes find the same mistakes together, later
        check_places(config.data, args.out)
    from headstart.cli.print_results import print_choice
    from headstart.selection.command import choose_backbone

    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():  # messages
        found = choose_backbone(
            config,
            backbones=args.backbones,
            sizes=args.sizes,
            weights=args.weights,
            repeats=args.repeats,
            images=args.images,
            out=args.out,
        )
    if not is_first_process():
        return
    if args.json:
        print(found.to_json())
    else:
        print_choice(found, out=args.out)


def _add_backbone(parser: ArgumentParser, *, weights: str, folds: str) -> None:
    """What the features of a source depend on, for `_config`. weights: the default; folds: what they are for."""
    group = parser.add_argument_group("Features")
    add = group.add_argument
    add("--weights", default=weights, metavar="NAME", help=f"Weights, as for --model.weights (default: {weights}).")
    options.add_number(group, "--image_size", 224, "Side of the square network input, in pixels")
    options.add_number(group, "--folds", 5, folds)
    options.add_number(group, "--seed", 0, "Seed of the folds")
    add(
        "--bank",
        metavar="FOLDER",
        help="Folder of the feature bank, where headstart stores features (default: in the user's cache folder).",
    )
    options.add_columns(parser, default="found by name")


def _config(args: Namespace, **data: Any) -> "RunConfig":
    from headstart.config import DataConfig, ModelConfig, ProbeConfig, RunConfig, RuntimeConfig, StrategyConfig

    return RunConfig(
        seed=args.seed,
        data=DataConfig(root=args.dir, image_size=args.image_size, **data, **options.columns_of(args)),
        model=ModelConfig(weights=args.weights),
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(folds=args.folds),
        runtime=RuntimeConfig(bank=args.bank or ""),
    )


def _check(args: Namespace) -> None:
    from headstart.cli.print_results import file_progress, print_data_report
    from headstart.data_doctor.command import check_data

    config = _config(args, on_bad_file="skip")
    found = check_data(config, labels=args.labels, out=args.out, progress=file_progress, excel=args.excel)
    print_data_report(found, out=args.out)


def _apply(args: Namespace) -> None:
    from headstart.data_doctor.fixes import apply_fixes

    check_local(args.out)
    count = apply_fixes(Path(args.fixes), data=Path(args.data), out=Path(args.out))
    print(f"{args.out}: " + ", ".join(f"{number} {what}" for what, number in count.items() if number))
    print(f"next: {command_line('train', args.out)}")


def _demo(args: Namespace) -> None:
    from headstart.data.solar_cells import write_solar_cells

    check_local(args.dir, option="DIR")
    counts = write_solar_cells(Path(args.dir), seed=args.seed, images=args.images, val_fraction=args.val_fraction)
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
    print(f"{folder}: {plural(len(entries), 'key')}, {sum(entry.num_bytes for entry in entries) / 2**20:.1f} MiB")
    for entry in entries:
        spec = entry.key.get("preprocess", {})
        days = (time.time() - entry.used) / 86400
        print(
            f"{entry.name}  {entry.num_bytes / 2**20:8.1f} MiB  {plural(entry.num_shards, 'shard'):>10}  "
            f"used {days:.1f} days ago  {entry.key.get('form', '?')}, "
            f"{spec.get('image_size', '?')} px of {spec.get('resize_size', '?')}, weights "
            f"{str(entry.key.get('weights_sha256', '?'))[:8]}"
        )
