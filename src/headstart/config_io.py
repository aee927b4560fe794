"""From command line and YAML files to a RunConfig. The command line wins over every file, whatever the order."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from headstart.config import RunConfig
from headstart.errors import InputError
from headstart.wording import nearest

_T = TypeVar("_T")

RENAMED = {"data.views": "data.augment_on", "probe.views": "probe.augmented_copies"}
"""Old key -> its name since."""

TRAIN_HELP = """\
Train a classifier on a folder of images.

  headstart train --config configs/frozen_head.yaml --data.root DIR --out RUN
  headstart train --config fine_tune --data.root DIR --model.weights bundled --train.epochs 4
  torchrun --nproc_per_node 2 -m headstart train --config fine_tune --data.root DIR

DIR holds train/ and val/ of class folders, or just class folders. Every key below can stand in the YAML file
(as section: {key: value}) or on the command line (as --section.key value); the command line wins. --config may
be given several times, later files win; a bare name is one of the shipped configs."""


def parse_train(argv: Sequence[str]) -> RunConfig:
    """The configuration that the arguments of `headstart train` describe.

    Raises InputError for anything unknown, mistyped or out of range, SystemExit(0) for --help.
    """
    import jsonargparse

    sections = {field.name for field in dataclasses.fields(RunConfig)} - set(_leaf_types(RunConfig))

    class Formatter(jsonargparse.DefaultHelpFormatter):  # type: ignore[misc, unused-ignore]
        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=34, width=112)  # type: ignore[no-untyped-call]

        def add_argument(self, action: Any) -> None:  # whole sections from files of their own: one way is enough
            if action.dest not in sections:
                super().add_argument(action)

        def _fill_text(self, text: str, width: int, indent: str) -> str:  # keep our line breaks
            return "\n".join(indent + line for line in text.splitlines())

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog="headstart train",
        usage="headstart train [--config FILE] --data.root DIR [--out RUN] [--section.key VALUE ...]",
        description=TRAIN_HELP,
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
        add_help=True,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below.")
    parser.add_class_arguments(RunConfig)
    files, options = _split_config_files(argv)
    _refuse_unknown_options(options)
    known = set(_leaf_types(RunConfig))
    paths = [_find_config(name) for name in files]
    paths = [path for path in paths if _has_keys(path, known)]
    # files first, so that whatever stands on the command line overrides them
    arguments = [part for path in paths for part in ("--config", str(path))] + options
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            values = parser.parse_args(arguments).as_dict()
    except SystemExit as end:
        if end.code:
            raise InputError(_one_sentence(complaints.getvalue())) from None
        raise
    except InputError:
        raise
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError and ValueError, all about the input
        raise InputError(_one_sentence(str(error))) from None
    values.pop("config", None)
    return build(RunConfig, values)


def build(kind: type[_T], values: Mapping[str, Any], prefix: str = "") -> _T:
    """A nested dataclass from a nested dict. Raises InputError for a null that may not be, and from the
    dataclass's own checks."""
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = build(hints[name], value or {}, f"{prefix}{name}.")
        elif value is None and type(None) not in get_args(hints[name]):
            raise InputError(f"{prefix}{name} is null; it must be {_in_words(hints[name])}")
        fields[name] = value
    return kind(**fields)


def to_yaml(config: RunConfig) -> str:
    """The whole tree, nothing left to a default; itself a valid --config."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def shipped_configs() -> dict[str, Path]:
    """Name -> path of the YAML files that come with headstart."""
    here = Path(__file__).parent
    folder = here / "configs"
    if not folder.is_dir():  # an editable install: the files lie at the top of the repository
        folder = here.parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 readers take for a number, 1e3 say."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    try:
        float(text)
        style: str | None = "'"
    except ValueError:
        style = None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _split_config_files(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    files, options = [], []
    rest = iter(argv)
    for part in rest:
        if part == "--config":
            name = next(rest, None)
            if name is None:
                raise InputError("--config stands at the end of the command; name a YAML file after it")
            files.append(name)
        elif part.startswith("--config="):
            files.append(part.removeprefix("--config="))
        else:
            options.append(part)
    return files, options


def _find_config(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if path.name == name and path.stem in shipped:
        return shipped[path.stem]
    hint = nearest(path.stem, shipped) or f"; shipped ones are {', '.join(shipped)}"
    raise InputError(f"--config {name}: there is no such file{hint}")


def _refuse_unknown_options(options: Sequence[str]) -> None:
    known = set(_leaf_types(RunConfig))
    for option in options:
        name = option.removeprefix("--").split("=", 1)[0]
        if option.startswith("--") and name not in known | {"help", "print_config"}:
            keys = sorted(key for key in known if key.startswith(f"{name}."))
            hint = f"; it is a section, its keys are {', '.join(keys)}" if keys else _hint(name, known)
            raise InputError(f"unknown option --{name}{hint}")


def _has_keys(path: Path, known: set[str]) -> bool:
    """False for an empty file. Raises InputError for keys that do not exist."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {_one_sentence(str(error))}") from None
    if tree is None:
        return False
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds {type(tree).__name__}, not sections of keys such as 'train: {{epochs: 4}}'")
    sections = {name.split(".")[0] for name in known if "." in name}
    for key, value in tree.items():
        name = str(key)
        if name in sections:
            if not isinstance(value, dict):
                raise InputError(f"{path}: {name} is a section of keys, not the value {value!r}")
            for inner in value:
                if f"{name}.{inner}" not in known:
                    raise InputError(f"{path}: unknown key {name}.{inner}{_hint(f'{name}.{inner}', known)}")
        elif name not in known:
            raise InputError(f"{path}: unknown key {name}{nearest(name, known | sections)}")
    return True


def _hint(name: str, known: set[str]) -> str:
    """The new name of a renamed key, else the nearest known one."""
    return f"; it is now {RENAMED[name]}" if name in RENAMED else nearest(name, known)


def _leaf_types(kind: type, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            leaves |= _leaf_types(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            leaves[prefix + name] = hint
    return leaves


def _one_sentence(text: str) -> str:
    """jsonargparse's complaint on one line, in our words where its shape is known."""
    flat = " ".join(text.split())
    mistyped = re.search(r'[Pp]arser key "([^"]+)": .*?(?:Got|Given) value: (.*?)(?:$| error:)', flat)
    if mistyped:
        key, value = mistyped.groups()
        hint = _leaf_types(RunConfig).get(key)
        return f"{key} is {value!r}; it must be {_in_words(hint)}" if hint else flat
    return flat.removeprefix("error: ")


def _in_words(hint: Any) -> str:
    choices = getattr(hint, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return "one of " + ", ".join(choices)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return " or ".join(names.get(part, str(part)) for part in (choices or (hint,)))
