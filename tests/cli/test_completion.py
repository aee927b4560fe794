"""`headstart completion`: what a shell completes is what the parsers accept. Bash answers itself; zsh and fish if they
are installed."""

import contextlib
import io
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headstart.cli import shell
from headstart.cli.main import COMMANDS, main
from headstart.config_io import key_types, shipped_configs
from headstart.errors import InputError

SHTAB = "COMPLETION NOT TESTED: pip install shtab"


def script_of(name: str) -> str:
    pytest.importorskip("shtab", reason=SHTAB)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
        main(["completion", name])
    assert not end.value.code
    return printed.getvalue()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("completion")

    def path_of(name: str) -> Path:
        path = folder / f"headstart.{name}"
        if not path.exists():
            path.write_text(script_of(name))
        return path

    return path_of


def installed(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"COMPLETION IN {name.upper()} NOT TESTED: {name} is not installed")
    return path


def in_bash(script: Path, words: list[str], *, cwd: Path) -> set[str]:
    """What Tab gives at the end of `headstart WORDS`. Without a PATH, so no Python is started."""
    line = shlex.join(["headstart", *words])
    code = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
        "_shtab_headstart; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        [installed("bash"), "--norc", "-c", code], cwd=cwd, env={"PATH": ""}, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def with_commands(parser: ArgumentParser, *words: str) -> Iterator[tuple[tuple[str, ...], ArgumentParser]]:
    yield words, parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for name, below in action.choices.items():
                yield from with_commands(below, *words, name)


ALL = dict(with_commands(shell.whole_parser()))


def test_every_command_has_a_parser() -> None:
    assert {words[0] for words in ALL if words} == set(COMMANDS)
    assert {("data", "check"), ("bench", "features"), ("doctor", "parity")} <= ALL.keys()


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_bash_completes_the_options_of_a_command(
    words: tuple[str, ...], scripts: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {name for action in ALL[words]._actions for name in action.option_strings if name.startswith("--")}
    assert in_bash(scripts("bash"), [*words, "--"], cwd=tmp_path) == options
    if words == ("train",):
        assert {f"--{key}" for key in key_types()} <= options


COMPLETED = {
    "": set(COMMANDS),
    "da": {"data"},
    "data ": {"check", "apply", "demo", "bank"},
    "train --strategy.name ": {"fine_tune", "frozen_head", "probe_then_tune"},
    "train --data.hflip ": {"true", "false"},
    "train --model.backbone lite": {"lite0", "lite1", "lite2"},
    "doctor parity --optim.name ": {"sgd", "adamw"},
    "evaluate runs/first --on_bad_file s": {"skip"},
    "choose photos --backbones resnet18 lite": {"lite0", "lite1", "lite2"},
    "export runs/first --format o": {"onnx", "onnx-uint8", "openvino"},
    "completion ": {"bash", "zsh", "fish"},
    "train --config mi": {"mine.yaml"},
    "train --config ": {*shipped_configs(), "mine.yaml", "photos"},
    "train --data.root ph": {"photos"},
    "train --out ": {"photos"},
    "inspect ": {"mine.yaml", "photos"},
    "compare photos ": {"mine.yaml", "photos"},
}


@pytest.mark.parametrize("line", COMPLETED)
def test_bash_completes_commands_values_and_paths(line: str, scripts: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.yaml").touch()
    words = shlex.split(line) + ([""] if line.endswith(" ") or not line else [])
    found = in_bash(scripts("bash"), words, cwd=tmp_path)
    assert found - {"-h", "--help"} == COMPLETED[line]


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_the_script_has_every_option(name: str, scripts: Callable[[str], Path]) -> None:
    text = scripts(name).read_text()
    for parser in ALL.values():
        for action in parser._actions:
            for option in action.option_strings:
                assert option.lstrip("-") in text


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_the_shell_reads_the_script(name: str, scripts: Callable[[str], Path]) -> None:
    command = [installed(name), "-n", str(scripts(name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


# a list after an option is completed up to its first value
@pytest.mark.parametrize("line", [line for line in COMPLETED if "--" in line and not line.startswith("choose")])
def test_fish_completes_values(line: str, scripts: Callable[[str], Path], tmp_path: Path) -> None:
    fish, script = installed("fish"), shlex.quote(str(scripts("fish")))
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.yaml").touch()
    code = f"source {script}; complete -C {shlex.quote(f'headstart {line}')}"
    done = subprocess.run([fish, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    found = {row.split("\t")[0].rstrip("/") for row in done.stdout.splitlines()}
    assert found >= COMPLETED[line]


@pytest.mark.parametrize("arguments", [[], ["tcsh"]])
def test_another_shell_is_refused_with_the_names_of_those_that_work(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=r"bash|SHELL"):
        shell.completion(arguments)


def test_without_shtab_one_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(InputError, match="pip install shtab"):
        shell.completion(["bash"])
