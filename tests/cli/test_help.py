"""--help of each command: purpose, examples that can be pasted, options with their defaults."""

import re
import shlex
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable, Iterator

import pytest

from headstart.cli import data, demo, machine, predict, resume, runs, shell, train
from headstart.cli.main import COMMANDS, HELP, main
from headstart.cli.options import Parser
from headstart.cli.train import parse_train

PARSERS: dict[str, Callable[[], Parser]] = {
    "train": train.train_parser,
    "evaluate": runs.evaluate_parser,
    "predict": predict.predict_parser,
    "inspect": runs.inspect_parser,
    "verify": runs.verify_parser,
    "push": runs.push_parser,
    "compare": runs.compare_parser,
    "serve": runs.serve_parser,
    "export": runs.export_parser,
    "report": runs.report_parser,
    "watch": runs.watch_parser,
    "open": runs.open_parser,
    "resume": resume.resume_parser,
    "choose": data.choose_parser,
    "data": data.data_parser,
    "bench": machine.bench_parser,
    "doctor": machine.doctor_parser,
    "doctor parity": machine.parity_parser,
    "demo": demo.demo_parser,
    "completion": shell.completion_parser,
}


def with_subcommands(parser: Parser) -> Iterator[Parser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for below in action.choices.values():
                yield from with_subcommands(below)


ALL = {parser.prog: parser for make in PARSERS.values() for parser in with_subcommands(make())}
EXAMPLES = [example for parser in ALL.values() for example in parser.examples]


def help_of(prog: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main([*prog.split()[1:], "--help"])
    assert not end.value.code
    return capsys.readouterr().out


def test_every_command_is_here() -> None:
    assert {prog.split()[1] for prog in ALL} == set(COMMANDS)
    assert len(ALL) == len(PARSERS) + 6  # check, apply, demo, bank; features, data


@pytest.mark.parametrize("prog", ALL)
def test_help_has_a_purpose_then_three_examples_then_options(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(prog, capsys)
    purpose = " ".join(text.partition("\n\nUsage: ")[0].split())
    assert purpose[0].isupper()
    assert purpose.endswith(".")
    assert purpose.count(". ") <= 1, "more than two sentences"
    assert len(ALL[prog].examples) == 3
    in_order = [f"\n\nUsage: {prog}", "\n\nExamples:", *(f"\n  {example}\n" for example in ALL[prog].examples)]
    places = [text.find(fragment) for fragment in [*in_order, "\n  -h, --help"]]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_command_without_mistakes(example: str) -> None:
    words = shlex.split(example)
    words = words[words.index("headstart") + 1 :]
    if words[0] == "train":
        parse_train(words[1:])
        return
    if words[:2] == ["doctor", "parity"]:
        _, rest = machine.parity_parser().parse_known_args(words[2:])
        parse_train(rest)
        return
    PARSERS[words[0]]().parse_args(words[1:])  # raises InputError


def described(parser: ArgumentParser) -> Iterator[tuple[str, str]]:
    """Option or argument, and its help text."""
    for action in parser._actions:
        if not isinstance(action, _SubParsersAction):
            yield (action.option_strings or [action.dest])[-1], (action.help or "") % {}


@pytest.mark.parametrize("prog", ALL)
def test_a_help_text_is_a_noun_phrase_that_ends_in_a_period(prog: str) -> None:
    texts = dict(described(ALL[prog]))
    assert texts
    verbs = r"(Write|Print|Use|Make|List(?! of)|Delete|Create|Train|Show|Read|Set|Of|How|Where|What|Skip) "
    for name, text in texts.items():
        assert text.endswith("."), name
        assert not re.match(verbs, text), f"{name}: {text}"


@pytest.mark.parametrize("prog", ALL)
def test_an_option_with_a_value_gives_its_default(prog: str) -> None:
    """But for those without which nothing is read or deleted."""
    optional = [a for a in ALL[prog]._actions if a.option_strings and a.nargs != 0 and not a.required]
    silent = {action.option_strings[-1] for action in optional if "default: " not in (action.help or "")}
    assert silent <= {"--config", "--prune", "--prune_unused"}


RETIRED = (
    "view|views|tally|position|told|tells|said|says|measured by|surest|room|answer|answers|question|facts|jobs|"
    "companion|pact|exact head|gate|anew|by itself|such a|waits for"
)


@pytest.mark.parametrize("prog", [*ALL, "headstart"])
def test_help_has_no_retired_words(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = HELP if prog == "headstart" else help_of(prog, capsys)
    assert re.findall(rf"\b(?:{RETIRED})\b", text) == []
    assert "95 %" not in text


def test_the_list_of_commands_has_each_command_once_with_one_line() -> None:
    listed = re.findall(r"^  ([a-z]+(?: [a-z]+)?)  +[a-z]", HELP, flags=re.MULTILINE)
    progs = [prog.removeprefix("headstart ") for prog in ALL]
    assert sorted(listed) == sorted(prog for prog in progs if prog not in ("data", "bench"))
    assert max(map(len, HELP.splitlines())) <= 100


def test_the_most_used_options_of_train_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    keys = re.findall(r"^  --(\S+)", help_of("headstart train", capsys), flags=re.MULTILINE)
    assert keys[: len(train.MOST_USED) + 1] == ["config", *train.MOST_USED]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("columns", ["80", "100", "200"])
@pytest.mark.parametrize("prog", ["headstart train", "headstart predict", "headstart data check"])
def test_help_fits_the_terminal(
    prog: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = [line for line in help_of(prog, capsys).splitlines() if not line.startswith("  headstart ")]
    assert max(len(line) for line in lines if "|" not in line and "torchrun" not in line) <= min(int(columns), 112)
