"""The commands on a finished run or a model file, one function each. The result is the exit code; None means 0."""

import sys

from headstart.cli.options import (
    add_bad_files,
    add_columns,
    add_device,
    add_json,
    add_model,
    check_at_least,
    columns_of,
    command_parser,
)
from headstart.errors import InputError


def evaluate(argv: list[str]) -> None:
    parser = command_parser("evaluate", "Evaluate a finished run on labelled images, each image once.")
    add_model(parser)
    parser.add_argument(
        "--data", required=True, help="any source of train; its val split if it has one, else test, else all images"
    )
    parser.add_argument("--split", help="split to evaluate instead, such as test")
    add_columns(parser, default="that of the run")
    parser.add_argument("--out", help=".json file to write the results to")
    add_bad_files(parser)
    args = parser.parse_args(argv)
    from headstart.runs.evaluate import evaluate_command

    evaluate_command(
        args.run,
        data=args.data,
        out=args.out,
        on_bad_file=args.on_bad_file,
        split=args.split,
        columns=columns_of(args),
    )


def inspect(argv: list[str]) -> None:
    parser = command_parser("inspect", "Print the contents of a model file: its header, without loading tensors.")
    add_model(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    from headstart.model.inspect_command import inspect_command

    inspect_command(args.run, as_json=args.json)


def verify(argv: list[str]) -> int:
    parser = command_parser(
        "verify",
        "Compute the golden inputs of a model file on this machine, in fp32 and in the precision that the model was "
        "evaluated in, and compare with the stored results. Exit code 1 if a difference exceeds its tolerance.",
    )
    add_model(parser)
    parser.add_argument("--precision", help="a single precision instead: measured, fp32, bf16, fp16 or auto")
    add_device(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    from headstart.diagnostics.verify import verify_command

    passed = verify_command(args.run, device=args.device, precision=args.precision, as_json=args.json)
    return 0 if passed else 1


def push(argv: list[str]) -> None:
    parser = command_parser(
        "push",
        "Upload a finished run to a Hugging Face repository: model file, model card, report. Images and checkpoints "
        "are not uploaded.",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("repo", metavar="REPO_ID", help="such as your-name/ants-and-bees; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded; needs no network")
    parser.add_argument(
        "--with_pictures", action="store_true", help="upload report.html even if it contains images of the data"
    )
    args = parser.parse_args(argv)
    from headstart.exporters.hub import push_command

    push_command(args.run, args.repo, private=args.private, dry_run=args.dry_run, with_pictures=args.with_pictures)


def compare(argv: list[str]) -> None:
    parser = command_parser(
        "compare", "Compare finished runs statistically on the same validation images, each with the first."
    )
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--out", help=".html page to write, with the images that the runs disagree on")
    parser.add_argument("--common", action="store_true", help="use only the images that all runs were evaluated on")
    add_json(parser)
    args = parser.parse_args(argv)
    from headstart.report.comparison_command import compare_command

    compare_command(args.runs, common=args.common, out=args.out, as_json=args.json)


def export(argv: list[str]) -> int:
    parser = command_parser(
        "export",
        "Write a finished model for another program. The result is run there on images of unusual sizes and modes and "
        "on the run's own validation images, and kept only if its predictions agree with those of headstart predict. "
        "Exit code 1 if they do not.",
    )
    add_model(parser)
    parser.add_argument(
        "--format",
        required=True,
        help="torchvision, transformers, timm, onnx, onnx-uint8 (from image to probabilities), int8, pt2 or openvino",
    )
    parser.add_argument("--out", required=True, help="file or folder to create")
    parser.add_argument("--data", help="where the images of the run are now (default: where they were)")
    parser.add_argument(
        "--images", type=int, default=1000, help="largest number of validation images to compare (default: 1000)"
    )
    parser.add_argument(
        "--allow_loss",
        type=float,
        metavar="SHARE",
        help="int8: acceptable loss of accuracy (default: 0.02, two points)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    args = parser.parse_args(argv)
    check_at_least(args, images=1)
    if args.allow_loss is not None and not 0 <= args.allow_loss <= 1:
        raise InputError(f"--allow_loss is {args.allow_loss}; it must lie between 0 and 1")
    from headstart.exporters.command import export_command
    from headstart.exporters.gate import Refused

    try:
        export_command(
            args.run,
            format=args.format,
            out=args.out,
            data=args.data,
            overwrite=args.overwrite,
            largest_loss=args.allow_loss,
            at_most=args.images,
        )
    except Refused as refusal:
        print(f"headstart: {args.format} is not written: {refusal}", file=sys.stderr)
        return 1
    return 0


def report(argv: list[str]) -> None:
    parser = command_parser("report", "Write report.html and README.md of a finished run again, from its folder.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--data", help="where the images of the run are now (default: where they were)")
    parser.add_argument("--doctor", help="folder of headstart data check --out (default: RUN, if it contains one)")
    args = parser.parse_args(argv)
    from headstart.report.command import report_command

    report_command(args.run, data=args.data, doctor=args.doctor)


def watch(argv: list[str]) -> None:
    parser = command_parser("watch", "Follow a training run from another terminal, until it ends.")
    parser.add_argument("run", help="run folder, which need not exist yet")
    parser.add_argument("--once", action="store_true", help="print the progress of the run and exit")
    args = parser.parse_args(argv)
    from headstart.runs.watch import watch_command

    watch_command(args.run, once=args.once)


def serve(argv: list[str]) -> None:
    parser = command_parser("serve", "Serve a finished run: a web page to drop images on, and an HTTP API.")
    from headstart.cli import serve as options

    options.add_options(parser)
    options.run(parser.parse_args(argv))
