"""The commands on a finished run or a model file, one function each; what they return is the exit code, None means 0."""

import sys

from headstart.cli.options import command_parser
from headstart.errors import InputError


def evaluate(argv: list[str]) -> None:
    from headstart.cli import data as data_cli

    parser = command_parser("evaluate", "Measure a finished run on images with classes, each image once.")
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument(
        "--data", required=True, help="any source of train; its val if it has one, else test, else all of it"
    )
    parser.add_argument("--split", help="measure on this split instead, such as test")
    data_cli.add_columns(parser, default="that of the run")
    parser.add_argument("--out", help="write the measurements to this .json file as well")
    parser.add_argument("--on_bad_file", choices=["refuse", "skip"], default="refuse", help="default: refuse")
    args = parser.parse_args(argv)
    from headstart.runs.evaluate import evaluate_command

    evaluate_command(
        args.run,
        data=args.data,
        out=args.out,
        on_bad_file=args.on_bad_file,
        split=args.split,
        columns=data_cli.columns_of(args),
    )


def predict(argv: list[str]) -> None:
    parser = command_parser(
        "predict",
        "Classify images with a finished run. Images that cannot be read are rows with an error; exit code 0.",
    )
    from headstart.cli import predict as predict_cli

    predict_cli.add_arguments(parser)
    predict_cli.predict_command(parser.parse_args(argv))


def inspect(argv: list[str]) -> None:
    parser = command_parser("inspect", "What is inside a model file: its header, without loading tensors.")
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    args = parser.parse_args(argv)
    from headstart.model.header import inspect_command

    inspect_command(args.run, as_json=args.json)


def verify(argv: list[str]) -> int:
    parser = command_parser(
        "verify",
        "Draw the golden inputs of a model file again and compare what this machine makes of them, in fp32 and as it was measured. "
        "Exit code 1 if a difference exceeds its tolerance.",
    )
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument("--precision", help="only this one: measured, fp32, bf16, fp16 or auto")
    parser.add_argument("--device", help="default: the GPU if there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(argv)
    from headstart.diagnostics.verify import verify_command

    passed = verify_command(args.run, device=args.device, precision=args.precision, as_json=args.json)
    return 0 if passed else 1


def push(argv: list[str]) -> None:
    parser = command_parser(
        "push",
        "Send a finished run to a Hugging Face repository: model file, model card, report. No images, no checkpoints.",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("repo", metavar="REPO_ID", help="such as your-name/ants-and-bees; made if it is not there")
    parser.add_argument("--private", action="store_true", help="if it is made, for you alone")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be sent; sends nothing, needs no network"
    )
    parser.add_argument(
        "--with_pictures", action="store_true", help="send report.html also if it holds images of the data"
    )
    args = parser.parse_args(argv)
    from headstart.exporters.hub import push_command

    push_command(args.run, args.repo, private=args.private, dry_run=args.dry_run, with_pictures=args.with_pictures)


def compare(argv: list[str]) -> None:
    parser = command_parser(
        "compare", "Finished runs on the same validation images: each of the others against the first."
    )
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--out", help="write a page (.html) with the images they disagree on")
    parser.add_argument("--common", action="store_true", help="leave out the images that not all runs were measured on")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    args = parser.parse_args(argv)
    from headstart.report.comparison_command import compare_command

    compare_command(args.runs, common=args.common, out=args.out, as_json=args.json)


def export(argv: list[str]) -> int:
    parser = command_parser(
        "export",
        "Write a finished model for another program. It is tried there on images of odd sizes and modes, and on the run's own "
        "validation images, and kept only if it answers as headstart predict does. Exit code 1 if it does not.",
    )
    parser.add_argument("run", help="run folder, or a model.safetensors")
    parser.add_argument(
        "--format",
        required=True,
        help="torchvision, transformers, timm, onnx, onnx-uint8 (from the image to the probabilities), int8, pt2 or openvino",
    )
    parser.add_argument("--out", required=True, help="file or folder to create")
    parser.add_argument("--data", help="where the images of the run lie now (default: where they lay)")
    parser.add_argument(
        "--images", type=int, default=1000, help="validation images that are compared at most (default: 1000)"
    )
    parser.add_argument(
        "--allow_loss", type=float, metavar="SHARE", help="int8: accuracy that may be lost (default: 0.02, two points)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    args = parser.parse_args(argv)
    if args.images < 1:
        raise InputError(f"--images is {args.images}; it must be at least 1")
    if args.allow_loss is not None and not 0 <= args.allow_loss <= 1:
        raise InputError(f"--allow_loss is {args.allow_loss}; it must lie between 0 and 1")
    from headstart.exporters.command import Refused, export_command

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
    parser = command_parser("report", "Write report.html and README.md of a finished run anew, from its folder.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--data", help="where the images are now; default: where the run found them")
    parser.add_argument("--doctor", help="folder that headstart data check --out wrote; default: RUN, if it holds one")
    args = parser.parse_args(argv)
    from headstart.report.command import report_command

    report_command(args.run, data=args.data, doctor=args.doctor)


def watch(argv: list[str]) -> None:
    parser = command_parser("watch", "Follow a training run from another terminal, until it ends.")
    parser.add_argument("run", help="run folder; it may not be there yet")
    parser.add_argument("--once", action="store_true", help="say where the run is, and end")
    args = parser.parse_args(argv)
    from headstart.runs.watch import watch_command

    watch_command(args.run, once=args.once)


def serve(argv: list[str]) -> None:
    parser = command_parser("serve", "Answer with a finished run: a page to drop images on, and an HTTP API.")
    from headstart.cli import serve as options

    options.add_options(parser)
    options.run(parser.parse_args(argv))
