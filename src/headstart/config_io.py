"""From YAML files and `--key value` options to a RunConfig, and back. The fields in config.py give the types."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml

from headstart.config import RunConfig
from headstart.errors import InputError
from headstart.files import user_path
from headstart.wording import command_line, listed, nearest, one_line, plural

RENAMED = {"data.views": "data.augment_on", "probe.views": "probe.augmented_copies"}
"""Old key -> its name since."""


def load_config(files: Iterable[str | Path], options: Mapping[str, str | None] | None = None) -> RunConfig:
    """The configuration of YAML files, each a path or the name of a shipped one, with options over them.

    options: dotted key -> text. An option wins over every file, a later file over an earlier one. Raises InputError
    for a key that does not exist, and for a value of another type or out of range."""
    values: dict[str, Any] = {}
    for name in files:
        path = _find_config(name)
        try:
            values |= _values_in(path.read_text(encoding="utf-8"), path)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a readable text file: {one_line(error)}") from None
    return _from_keys(values | _typed(options or {}))


def to_yaml(config: RunConfig) -> str:
    """Every key with its value; itself a valid --config."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def shipped_configs() -> dict[str, Path]:
    """Name -> path of the YAML files that come with headstart."""
    here = Path(__file__).parent
    folder = here / "configs"
    if not folder.is_dir():  # an editable install: the files lie at the top of the repository
        folder = here.parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _find_config(name: str | Path) -> Path:
    """An existing file of this name, else the shipped configuration of this name. Raises InputError."""
    path = Path(user_path(name))
    if path.is_file():
        return path
    shipped = shipped_configs()
    if path.name == str(name) and path.stem in shipped:
        return shipped[path.stem]
    hint = nearest(path.stem, shipped) or f"; the shipped ones are {', '.join(shipped)}"
    raise InputError(f"--config {name} does not exist{hint}")


def repeated_runs(path: Path) -> list[str]:
    """The names of the run folders in `path` if it holds several runs of one configuration, whether they have begun or
    not; empty for a single run."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        folds, num_seeds, seed = config["train"]["folds"], config["train"]["seeds"], config["seed"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []
    if folds:
        return [f"fold_{fold}" for fold in range(folds)]
    return [f"seed_{number}" for number in range(seed, seed + num_seeds)] if num_seeds > 1 else []


def check_single_run(path: Path) -> None:
    """Raise InputError, which names the runs inside, if `path` is a folder of repeated runs."""
    if names := repeated_runs(path):
        advice = f"name one of them, such as {path / names[0]}"
        if names[0].startswith("fold_"):
            again = command_line(
                "train", "--config", path / "config.yaml", "--train.folds", 0, "--out", f"{path}-final"
            )
            advice += f", or train the model to use after cross-validation: {again}"
        raise InputError(f"{path} holds {plural(len(names), 'run')}: {listed(names, limit=10)}; {advice}")


@cache
def key_types() -> dict[str, Any]:
    """Dotted key -> the type of its field, in the order of config.py."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(RunConfig).items():
        inner = get_type_hints(hint) if dataclasses.is_dataclass(hint) else None
        types |= {name: hint} if inner is None else {f"{name}.{key}": kind for key, kind in inner.items()}
    return types


def hint_for_key(name: str, *, sections: bool = False) -> str:
    """A clause for an unknown key: its new name, the keys of a section, or the nearest key. sections: or section."""
    known = key_types()
    inside = [key for key in known if key.startswith(f"{name}.")]
    if name in RENAMED:
        return f"; it is now {RENAMED[name]}"
    if inside:
        return f"; it is a section, its keys are {', '.join(sorted(inside))}"
    return nearest(name, [*known, *_sections()] if sections else known)


def _sections() -> set[str]:
    return {key.split(".")[0] for key in key_types() if "." in key}


class _Texts(yaml.SafeLoader):
    """Leaves every scalar but null as it is written: what 1e-3, no or 007 means depends on the type of its key."""


_Texts.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _values_in(text: str, where: str | Path) -> dict[str, Any]:
    try:
        tree = yaml.load(text, Loader=_Texts)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where} is not valid YAML: {one_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(
            f"{where} is a {type(tree).__name__}; it must have sections of keys, such as 'train: {{epochs: 4}}'"
        )
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if name in _sections():
            if not isinstance(value, dict):
                raise InputError(f"{where}: {name} is a section of keys, not the value {value!r}")
            values |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            values[str(name)] = value
    return _typed(values, f"{where}: ")


def _from_keys(values: Mapping[str, Any]) -> RunConfig:
    fields: dict[str, Any] = {}
    for name, hint in get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(hint):
            inside = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
            fields[name] = hint(**inside)  # type: ignore[operator]
        elif name in values:
            fields[name] = values[name]
    return RunConfig(**fields)


def _typed(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Texts by key -> values of the types of the fields. Raises InputError naming all unknown keys, or else all wrong
    values."""
    types = key_types()
    unknown = [f"unknown key {key}{hint_for_key(key, sections='.' not in key)}" for key in values if key not in types]
    if unknown:
        raise InputError(where + "; ".join(unknown))
    typed, wrong = {}, []
    for key, value in values.items():
        try:
            typed[key] = _value_of(key, value, types[key])
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError(where + "; ".join(wrong))
    return typed


def _value_of(key: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) or (hint,)
    if NoneType in kinds and value in (None, "null"):
        return None
    if isinstance(value, str):
        if value in kinds:  # of a Literal
            return value
        for read in (_READ[kind] for kind in kinds if kind in _READ):
            try:
                return read(value)
            except ValueError:
                pass
    given = "null" if value is None else repr(value)
    raise InputError(f"{key} is {given}; it must be {_in_words(kinds)}")


def _bool(text: str) -> bool:
    truth = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(text.lower())
    if truth is None:
        raise ValueError(text)
    return truth


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


_READ: dict[Any, Callable[[str], Any]] = {int: int, float: _finite, bool: _bool, str: str}


def _in_words(kinds: tuple[Any, ...]) -> str:
    if isinstance(kinds[0], str):
        return f"one of {', '.join(kinds)}"
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}
    return " or ".join(names[kind] for kind in kinds)
