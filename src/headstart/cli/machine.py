"""The commands about this machine: `headstart bench`, `headstart doctor`. The result is the exit code; None means 0."""

import json
import signal
import sys
from argparse import Namespace

from headstart.cli.options import add_json, check_at_least, command_parser
from headstart.errors import InputError


def bench(argv: list[str]) -> None:
    parser = command_parser("bench", "Measure the speed of this machine.")
    what = parser.add_subparsers(dest="what", required=True, metavar="features | data")
    features = what.add_parser("features", help="feature extraction, and the same network on images in memory")
    data = what.add_parser("data", help="the stages of the input, and training on loaded and on in-memory batches")
    for command in (features, data):
        command.add_argument("--data", required=True, help="image folder")
        command.add_argument("--weights", default="bundled", help="as --model.weights of train (default: bundled)")
        command.add_argument(
            "--mixed_precision", choices=["no", "bf16", "fp16", "auto"], default="auto", help="default: auto"
        )
        command.add_argument("--rounds", type=int, default=3, help="repetitions of each measurement (default: 3)")
    data.add_argument("--image_size", type=int, default=224, help="px (default: 224)")
    data.add_argument("--batch_size", type=int, default=32, help="images per step (default: 32)")
    data.add_argument("--threads", type=int, help="threads of torch (default: the usable cores)")
    data.add_argument("--steps", type=int, default=8, help="steps of each measurement (default: 8)")
    features.set_defaults(command=_bench_features)
    data.set_defaults(command=_bench_data)
    args = parser.parse_args(argv)
    check_at_least(args, rounds=1, steps=1)
    args.command(args)


def _bench_features(args: Namespace) -> None:
    from headstart.diagnostics.bench_features import bench_features

    bench_features(args.data, weights_source=args.weights, precision=args.mixed_precision, rounds=args.rounds)


def _bench_data(args: Namespace) -> None:
    from headstart.config import DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig

    config = RunConfig(
        data=DataConfig(root=args.data, image_size=args.image_size),
        model=ModelConfig(weights=args.weights),
        train=TrainConfig(batch_size=args.batch_size, checkpoint_minutes=0),
        runtime=RuntimeConfig(mixed_precision=args.mixed_precision, threads=args.threads),
    )
    from headstart.diagnostics.bench_input import bench_data

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: temporary folders are removed
    bench_data(config, rounds=args.rounds, steps=args.steps)


def doctor(argv: list[str]) -> int:
    if argv[:1] == ["parity"]:
        return _parity(argv[1:])
    parser = command_parser(
        "doctor", "Print hardware and software of this machine, and problems. See also headstart doctor parity --help."
    )
    add_json(parser)
    args = parser.parse_args(argv)
    from headstart.diagnostics.environment import examine, print_environment, warnings_of

    found = examine()
    if args.json:
        print(json.dumps({**found, "warnings": warnings_of(found)}, indent=2))
    else:
        print_environment(found)
    return 0


def _parity(argv: list[str]) -> int:
    parser = command_parser(
        "doctor parity",
        "Run a few steps of a configuration on 1 process and on several, with and without workers, interrupted, in "
        "bf16, and compare. Every other option is one of headstart train. Exit code 1 if a difference exceeds its "
        "tolerance.",
    )
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each run (default: 10)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes (default: 1 2)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of workers (default: 0 2)")
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=["fine_tune", "frozen_head"],
        help="strategies to examine, a frozen head with recomputed features (default: that of the configuration)",
    )
    args, rest = parser.parse_known_args(argv)
    if args.steps < 5 or min(args.processes) < 1 or min(args.workers) < 0:
        raise InputError("--steps must be at least 5, --processes at least 1, --workers at least 0")
    from dataclasses import replace

    from rich.console import Console

    from headstart.cli.train import parse_train
    from headstart.diagnostics.parity import check_parity, table_of

    checks = []
    for strategy in args.strategies or [""]:
        chosen = ["--strategy.name", strategy, "--strategy.features", "recompute"] if strategy else []
        config = parse_train([*rest, *chosen])
        found = check_parity(config, steps=args.steps, processes=args.processes, workers=args.workers)
        checks += [replace(check, name=f"{strategy} {check.name}".lstrip()) for check in found]
    Console(width=None if sys.stdout.isatty() else 130).print(table_of(checks))
    return 0 if all(check.passed for check in checks) else 1
