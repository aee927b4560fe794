"""The commands about this machine: `headstart bench`, `headstart doctor`. The result is the exit code; None means 0."""

import json
import signal
from argparse import Namespace

from headstart.cli.options import Parser, add_json, add_number, check_at_least, command_parser
from headstart.errors import InputError


def bench_parser() -> Parser:
    parser = command_parser(
        "bench",
        "Measure the speed of this machine on your images. Each benchmark has its own help, such as headstart bench "
        "data --help.",
        "data --data photos",
        "data --data photos --image_size 160 --batch_size 64",
        "features --data photos",
    )
    add_command = parser.commands("features | data")
    features = add_command(
        "features",
        "Speed of feature extraction.",
        "Measure the speed of feature extraction from image files, and of the network alone, on images in memory.",
        "--data photos",
        "--data photos --rounds 5",
        "--data photos --backbone lite0 --weights imagenet",
    )
    data = add_command(
        "data",
        "Bottleneck of training, and recommended settings.",
        "Measure the speed of each stage of the input pipeline, of training as usual, and of training on batches that "
        "are already in memory. Prints the bottleneck and the recommended settings.",
        "--data photos",
        "--data photos --image_size 160 --batch_size 64",
        "--data photos --rounds 5 --steps 12",
    )
    for command in (features, data):
        add = command.add_argument
        add("--data", required=True, metavar="DIR", help="Image folder.")
        add(
            "--backbone",
            default="resnet18",
            metavar="NAME",
            help="Backbone, as for --model.backbone of train (default: resnet18).",
        )
        add(
            "--weights",
            default="bundled",
            metavar="NAME",
            help="Weights, as for --model.weights of train (default: bundled).",
        )
        add(
            "--mixed_precision",
            choices=["no", "bf16", "fp16", "auto"],
            default="auto",
            help="Precision, as for --runtime.mixed_precision of train (default: auto).",
        )
        add_number(command, "--rounds", 3, "Repetitions of each measurement")
    data.add_argument(
        "--image_size",
        type=int,
        metavar="N",
        help="Side of the square network input, in pixels (default: that of the backbone).",
    )
    add_number(data, "--batch_size", 32, "Images per step")
    add_number(data, "--steps", 8, "Steps of each measurement")
    data.add_argument("--threads", type=int, metavar="N", help="PyTorch threads (default: the usable cores).")
    features.set_defaults(command=_bench_features)
    data.set_defaults(command=_bench_data)
    return parser


def bench(argv: list[str]) -> None:
    args = bench_parser().parse_args(argv)
    check_at_least(args, rounds=1, steps=1)
    from headstart.config import DataConfig
    from headstart.data.sources.open import open_source

    open_source(DataConfig(root=args.data)).check()
    args.command(args)


def _bench_features(args: Namespace) -> None:
    from headstart.diagnostics.bench_features import bench_features

    bench_features(
        args.data,
        backbone=args.backbone,
        weights_source=args.weights,
        precision=args.mixed_precision,
        rounds=args.rounds,
    )


def _bench_data(args: Namespace) -> None:
    from headstart.config import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StrategyConfig, TrainConfig

    config = RunConfig(
        data=DataConfig(root=args.data, image_size=args.image_size),
        model=ModelConfig(backbone=args.backbone, weights=args.weights),
        strategy=StrategyConfig(name="fine_tune"),
        train=TrainConfig(batch_size=args.batch_size, checkpoint_minutes=0),
        runtime=RuntimeConfig(mixed_precision=args.mixed_precision, threads=args.threads),
    )
    from headstart.diagnostics.bench_input import bench_data

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: temporary folders are removed
    bench_data(config, rounds=args.rounds, steps=args.steps)


def doctor_parser() -> Parser:
    parser = command_parser(
        "doctor",
        "Print the hardware and software of this machine, and any problems. See also headstart doctor parity --help.",
        "",
        "--json",
        "parity photos --config fine_tune",
    )
    add_json(parser)
    return parser


def doctor(argv: list[str]) -> int:
    if argv[:1] == ["parity"]:
        return _parity(argv[1:])
    args = doctor_parser().parse_args(argv)
    from headstart.diagnostics.environment import examine, print_environment, warnings_of

    found = examine()
    if args.json:
        print(json.dumps({**found, "warnings": warnings_of(found)}, indent=2))
    else:
        print_environment(found)
    return 0


def parity_parser() -> Parser:
    parser = command_parser(
        "doctor parity",
        "Check that your configuration gives the same losses with other numbers of processes and workers, after an "
        "interruption, and in bf16. The exit code is 1 if a difference exceeds its tolerance.",
        "photos --config fine_tune",
        "photos --config fine_tune --processes 1 2 3",
        "photos --strategies fine_tune frozen_head --steps 50",
    )
    parser.usage = "headstart doctor parity DIR [options] [options of headstart train]"
    add = parser.add_argument
    add_number(parser, "--steps", 10, "Optimizer steps of each run")
    add(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="Numbers of processes to compare (default: 1 2).",
    )
    add(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 2],
        metavar="N",
        help="Numbers of workers to compare (default: 0 2).",
    )
    add(
        "--strategies",
        nargs="+",
        choices=["fine_tune", "frozen_head"],
        help="Strategies to check (default: that of the configuration). frozen_head is checked without the feature "
        "bank.",
    )
    return parser


def _parity(argv: list[str]) -> int:
    parser = parity_parser()
    args, rest = parser.parse_known_args(argv)
    if args.steps < 5 or min(args.processes) < 1 or min(args.workers) < 0:
        raise InputError("--steps must be at least 5, --processes at least 1, --workers at least 0")
    from dataclasses import replace

    from headstart.cli.train import parse_train
    from headstart.data.sources.open import open_source

    configs = {}
    for strategy in args.strategies or [""]:
        chosen = ["--strategy.name", strategy, "--strategy.features", "recompute"] if strategy else []
        configs[strategy] = parse_train([*rest, *chosen])
        open_source(configs[strategy].data).check()
    from headstart.cli.print_results import print_parity
    from headstart.diagnostics.parity import check_parity

    checks = []
    for strategy, config in configs.items():
        found = check_parity(config, steps=args.steps, processes=args.processes, workers=args.workers)
        checks += [replace(check, name=f"{strategy} {check.name}".lstrip()) for check in found]
    print_parity(checks)
    return 0 if all(check.passed for check in checks) else 1
