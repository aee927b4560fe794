"""The commands on a finished run or a model file, one function each. The result is the exit code; None means 0."""

import sys
from pathlib import Path

from headstart.cli import options
from headstart.cli.options import Parser, command_parser
from headstart.cli.output import clickable
from headstart.launcher import is_first_process


def evaluate_parser() -> Parser:
    parser = command_parser(
        "evaluate",
        "Evaluate a finished run on labelled images, by default on the test set of its own data. Images that the run "
        "was trained on are left out and listed.",
        "runs/first --out test.html",
        "runs/first --data photos --split val",
        "runs/first/model.safetensors --data labels.csv --image_column file --label_column species",
    )
    options.add_model(parser)
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="Folder, table or other source of images, as for train (default: that of the run).",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="Split to evaluate (default: test without --data; else val, else test, else all images).",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="File for the results: a page if it ends in .html, else JSON (default: none)."
    )
    options.add_bad_files(parser)
    options.add_columns(parser, default="as in the run")
    return parser


def evaluate(argv: list[str]) -> None:
    args = evaluate_parser().parse_args(argv)
    from headstart.config import DataConfig
    from headstart.data.sources.open import open_source
    from headstart.files import check_out
    from headstart.runs.files import to_evaluate

    check_out(args.out)
    options.check_model_of(args.run)
    root, split = to_evaluate(args.run, args.data, args.split)
    open_source(DataConfig(root=root), to_evaluate=True).check()
    from headstart.cli.print_results import print_evaluation
    from headstart.report.evaluation import write_evaluation
    from headstart.runs.evaluate import evaluate_run
    from headstart.runtime.accelerator import set_threads

    set_threads(None)
    found = evaluate_run(
        args.run, data=args.data, on_bad_file=args.on_bad_file, split=args.split, columns=options.columns_of(args)
    )
    if args.data is None and is_first_process():
        print(f"{split} images of {root}")
    print_evaluation(found.result)
    if args.out is not None:
        write_evaluation(found, args.out)
        if is_first_process():
            print(f"{'page' if args.out.endswith('.html') else 'results as JSON'}: {clickable(Path(args.out))}")


def inspect_parser() -> Parser:
    parser = command_parser(
        "inspect",
        "Print the header of a model file: classes, preprocessing, metrics, versions. Tensors are not loaded.",
        "runs/first",
        "model.safetensors --tensors",
        "runs/first --json",
    )
    options.add_model(parser)
    parser.add_argument(
        "--tensors", action="store_true", help="Also the name, type and shape of each tensor, as always in JSON."
    )
    options.add_json(parser)
    return parser


def inspect(argv: list[str]) -> None:
    args = inspect_parser().parse_args(argv)
    from headstart.model.inspect_command import inspect_command

    inspect_command(args.run, as_json=args.json, tensors=args.tensors)


def verify_parser() -> Parser:
    parser = command_parser(
        "verify",
        "Check that this machine reproduces the reference outputs that are stored in a model file. The exit code is 1 "
        "if a difference exceeds its tolerance.",
        "runs/first",
        "runs/first --device cpu --precision fp32",
        "model.safetensors --json",
    )
    options.add_model(parser)
    options.add_precision(parser, "One precision to check", default=None)
    options.add_device(parser)
    options.add_json(parser)
    return parser


def verify(argv: list[str]) -> int:
    args = verify_parser().parse_args(argv)
    options.check_model_of(args.run)
    from headstart.cli.print_results import print_verification
    from headstart.diagnostics.verify import verify
    from headstart.runtime.accelerator import set_threads

    set_threads(None)
    found = verify(args.run, device=args.device, precision=args.precision)
    if args.json:
        print(found.to_json())
    else:
        print_verification(found)
    return 0 if found.passed else 1


def push_parser() -> Parser:
    parser = command_parser(
        "push",
        "Upload a finished run to the Hugging Face Hub: model file, model card and report. Images of the data set are "
        "uploaded only with --with_pictures.",
        "runs/first your-name/ants-and-bees --dry-run",
        "runs/first your-name/ants-and-bees --private",
        "runs/first your-name/ants-and-bees --with_pictures",
    )
    options.add_run(parser)
    parser.add_argument(
        "repo", metavar="REPO_ID", help="Repository, such as your-name/ants-and-bees; created if it does not exist."
    )
    parser.add_argument("--dry-run", action="store_true", help="Preview of what would be uploaded; needs no network.")
    parser.add_argument("--private", action="store_true", help="Private visibility of a new repository.")
    parser.add_argument(
        "--with_pictures", action="store_true", help="Upload of report.html even if it shows images of the data set."
    )
    return parser


def push(argv: list[str]) -> None:
    args = push_parser().parse_args(argv)
    from headstart.exporters.hub import push_command

    push_command(args.run, args.repo, private=args.private, dry_run=args.dry_run, with_pictures=args.with_pictures)


def compare_parser() -> Parser:
    parser = command_parser(
        "compare",
        "Compare finished runs statistically on the same validation images. Each run is compared with the first.",
        "runs/first runs/second",
        "runs/first runs/second runs/third --out comparison.html",
        "runs/first runs/second --common --json",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Run folders. Each is compared with the first.")
    parser.add_argument(
        "--out", metavar="PAGE.html", help="Page to write, with the images that the runs disagree on (default: none)."
    )
    parser.add_argument(
        "--common", action="store_true", help="Restriction to the images that all runs were evaluated on."
    )
    options.add_json(parser)
    return parser


def compare(argv: list[str]) -> None:
    args = compare_parser().parse_args(argv)
    from headstart.cli.print_results import print_comparison
    from headstart.report.comparison_command import compare_runs

    found = compare_runs(args.runs, common=args.common, out=args.out)
    if args.json:
        print(found.to_json())
    else:
        print_comparison(found, out=args.out)


def export_parser() -> Parser:
    parser = command_parser(
        "export",
        "Export a finished model for another program, and check it there on test images. If its predictions differ "
        "from those of headstart predict, nothing is written and the exit code is 1.",
        "runs/first --format onnx-uint8 --out model.onnx",
        "runs/first --format torchvision --out plain.safetensors",
        "runs/first --format int8 --out small.onnx --allow_loss 0.01",
    )
    options.add_model(parser)
    parser.add_argument(
        "--format",
        required=True,
        metavar="NAME",
        help="Format: torchvision, transformers, timm, onnx, onnx-uint8 (image in, probabilities out), int8, pt2 or "
        "openvino.",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="File or folder to create.")
    parser.add_argument("--overwrite", action="store_true", help="Permission to replace an earlier export.")
    check = parser.add_argument_group("Check of the result")
    check.add_argument(
        "--data", metavar="DIR", help="Folder of the run's images, if they were moved (default: as in the run)."
    )
    options.add_number(check, "--images", 1000, "Largest number of validation images to compare")
    check.add_argument(
        "--allow_loss",
        type=float,
        metavar="SHARE",
        help="Largest loss of accuracy that int8 may cause, as a share of the images (default: 0.02).",
    )
    return parser


def export(argv: list[str]) -> int:
    args = export_parser().parse_args(argv)
    from headstart.exporters.formats import check_place, check_runtime, find_format
    from headstart.exporters.options import check_options
    from headstart.files import check_local
    from headstart.runs.files import check_outside_data

    check_options(images=args.images, allow_loss=args.allow_loss)
    format = find_format(args.format)
    check_local(args.out)
    check_place(Path(args.out), format, overwrite=args.overwrite)
    check_outside_data(args.out, Path(args.run), data=args.data)
    check_runtime(format)
    options.check_model_of(args.run)
    from headstart.cli.print_results import print_export
    from headstart.exporters.command import export_run
    from headstart.results import ExportRefused
    from headstart.runtime.accelerator import set_threads
    from headstart.runtime.signals import ended_at_once

    set_threads(None)
    try:
        with ended_at_once("nothing is written"):
            found = export_run(
                args.run,
                format=args.format,
                out=args.out,
                data=args.data,
                overwrite=args.overwrite,
                allow_loss=args.allow_loss,
                images=args.images,
            )
    except ExportRefused as refusal:
        print(f"headstart: {refusal}", file=sys.stderr)
        return 1
    print_export(found)
    return 0


def report_parser() -> Parser:
    parser = command_parser(
        "report",
        "Regenerate report.html and the model card (README.md) of a finished run.",
        "runs/first --data photos",
        "runs/first --doctor checked",
        "runs/first --purpose 'Counts bees at the hive' --author 'A. Person'",
    )
    options.add_run(parser)
    parser.add_argument(
        "--data", metavar="DIR", help="Folder of the run's images, if they were moved (default: as in the run)."
    )
    parser.add_argument(
        "--doctor",
        metavar="FOLDER",
        help="Output folder of headstart data check, whose findings the report shows (default: RUN, if it has "
        "doctor.json).",
    )
    parser.add_argument(
        "--purpose",
        metavar="TEXT",
        help="Purpose of the model, shown in the report and the model card; kept in the run (default: as before).",
    )
    parser.add_argument("--author", metavar="TEXT", help="Author, shown and kept in the same way (default: as before).")
    return parser


def report(argv: list[str]) -> None:
    args = report_parser().parse_args(argv)
    from headstart.runs.files import check_finished

    check_finished(args.run)
    from headstart.report.command import report_command

    report_command(args.run, data=args.data, doctor=args.doctor, purpose=args.purpose, author=args.author)


def watch_parser() -> Parser:
    parser = command_parser(
        "watch",
        "Follow a training run from another terminal until it ends.",
        "runs/first",
        "runs/first --once",
        "runs/five_seeds",
    )
    parser.add_argument("run", metavar="RUN", help="Run folder, or a folder of repeated runs; it may not exist yet.")
    parser.add_argument("--once", action="store_true", help="One progress report, without waiting.")
    return parser


def watch(argv: list[str]) -> None:
    args = watch_parser().parse_args(argv)
    from headstart.runs.watch import watch_command

    watch_command(args.run, once=args.once)


def open_parser() -> Parser:
    parser = command_parser(
        "open",
        "Open the report of a finished run in the browser, and print its path. Without a display, the path is only "
        "printed.",
        "runs/first",
        "runs/five_folds",
        "runs/five_folds/fold_0",
    )
    options.add_run(parser)
    return parser


def open(argv: list[str]) -> None:  # as the command is called
    args = open_parser().parse_args(argv)
    from headstart.cli.open_page import open_page, report_of

    open_page(report_of(args.run))


def serve_parser() -> Parser:
    parser = command_parser(
        "serve",
        "Serve a finished model on this machine: a web page to drop images on, and an HTTP API. Needs the extra serve "
        "(pip install 'headstart[serve]').",
        "runs/first",
        "runs/first --port 9000 --access_log",
        "runs/first --host 0.0.0.0 --allow_host models.example.org",
    )
    from headstart.cli.serve import add_options

    add_options(parser)
    return parser


def serve(argv: list[str]) -> None:
    from headstart.cli.serve import run

    run(serve_parser().parse_args(argv))
