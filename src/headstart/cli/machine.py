"""The commands about this machine: `headstart bench`, `headstart doctor`; what they return is the exit code, None means 0."""

import json
import signal
import sys
from argparse import Namespace

from headstart.cli.options import command_parser
from headstart.errors import InputError


def bench(argv: list[str]) -> None:
    parser = command_parser("bench", "How fast this machine is.")
    what = parser.add_subparsers(dest="what", required=True, metavar="features | data")
    features = what.add_parser("features", help="extraction beside the same trunk on images already in memory")
    features.add_argument("--data", required=True, help="image folder")
    features.add_argument("--weights", default="bundled", help="as --model.weights of train (default: bundled)")
    features.add_argument(
        "--mixed_precision", choices=["no", "bf16", "fp16", "auto"], default="auto", help="default: auto"
    )
    data = what.add_parser(
        "data", help="the stages of the input, and the real run beside the step on tensors in memory"
    )
    data.add_argument("--data", required=True, help="image folder")
    data.add_argument("--weights", default="bundled", help="as --model.weights of train (default: bundled)")
    data.add_argument("--image_size", type=int, default=224, help="px (default: 224)")
    data.add_argument("--batch_size", type=int, default=32, help="default: 32")
    data.add_argument("--mixed_precision", choices=["no", "bf16", "fp16", "auto"], default="auto", help="default: auto")
    data.add_argument("--threads", type=int, help="of torch; default: the usable cores")
    data.add_argument("--steps", type=int, default=8, help="of each measurement (default: 8)")
    for command in (features, data):
        command.add_argument("--rounds", type=int, default=3, help="default: 3")
    args = parser.parse_args(argv)
    for name in ("rounds", "steps"):
        if getattr(args, name, 1) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.what == "data":
        _bench_data(args)
        return
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

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: with what it has unpacked removed
    bench_data(config, rounds=args.rounds, steps=args.steps)


def doctor(argv: list[str]) -> int:
    if argv[:1] == ["parity"]:
        return _parity(argv[1:])
    parser = command_parser(
        "doctor", "What this machine offers; headstart doctor parity --help for the other examination."
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(argv)
    from headstart.diagnostics.environment import examine, warnings_of

    found = examine()
    if args.json:
        print(json.dumps({**found, "warnings": warnings_of(found)}, indent=2))
        return 0
    for name, value in found.items():
        text = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else value
        print(f"{name}: {', '.join(text) or 'none' if isinstance(text, list) else text}")
    for sentence in warnings_of(found) or ["no problems found"]:
        print(f"- {sentence}")
    return 0


def _parity(argv: list[str]) -> int:
    parser = command_parser(
        "doctor parity",
        "Run a few steps of a configuration on 1 process and on several, with and without workers, interrupted, in bf16, "
        "and compare. Every other option is one of headstart train. Exit code 1 if a difference exceeds its tolerance.",
    )
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each run (default: 10)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="default: 0 2")
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=["fine_tune", "frozen_head"],
        help="examine each of these, a frozen head with its features recomputed (default: what the configuration says)",
    )
    args, rest = parser.parse_known_args(argv)
    if args.steps < 5 or min(args.processes) < 1 or min(args.workers) < 0:
        raise InputError("--steps must be at least 5, --processes at least 1, --workers at least 0")
    from dataclasses import replace

    from rich.console import Console

    from headstart.config_io import parse_train
    from headstart.diagnostics.parity import check_parity, table_of

    checks = []
    for strategy in args.strategies or [""]:
        chosen = ["--strategy.name", strategy, "--strategy.features", "recompute"] if strategy else []
        config = parse_train([*rest, *chosen])
        found = check_parity(config, steps=args.steps, processes=args.processes, workers=args.workers)
        checks += [replace(check, name=f"{strategy} {check.name}".lstrip()) for check in found]
    Console(width=None if sys.stdout.isatty() else 130).print(table_of(checks))
    return 0 if all(check.passed for check in checks) else 1
