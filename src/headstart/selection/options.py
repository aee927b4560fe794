"""The configuration of `headstart choose`, from its options. Knows no torch."""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from headstart.backbones import check_name
from headstart.config import IMAGE_KEYS, DataConfig, ModelConfig, ProbeConfig, RunConfig, RuntimeConfig, StrategyConfig
from headstart.data.sources.open import open_source
from headstart.errors import InputError
from headstart.files import check_links, check_local, check_outside

_P = ParamSpec("_P")
_T = TypeVar("_T")
RESULT_FILES = ("choose.json", "choose.html")
MOST_FOLDS = 20
"""The heads of nested cross-validation grow with the square of the folds."""
_OPTIONS = {"image_size": "sizes", "backbone": "backbones"}


def naming_options(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let the messages of InputError name the options of `headstart choose` instead of keys of the configuration."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except InputError as error:
            error.args = (in_options(str(error)),)
            raise

    return call


def in_options(message: str) -> str:
    """Complete commands stay as they are."""

    def option(found: re.Match[str]) -> str:
        key = found["key"]
        return found[0] if key is None else f"--{_OPTIONS.get(key, key)}"

    keys = "|".join((*_OPTIONS, *IMAGE_KEYS, "weights", "bank", "folds"))
    pattern = rf"headstart (?:train|data|bench) [^;]*|(?<![\w.-])(?:--)?(?:data|model|runtime|probe)\.(?P<key>{keys})\b"
    return re.sub(pattern, option, message)


def check_candidates(backbones: Sequence[str], sizes: Sequence[int]) -> None:
    """Raise InputError for values that are not lists of names and of whole numbers; Python has no parser for them."""
    if isinstance(backbones, str) or not _is_list(backbones, str):
        one = [backbones] if isinstance(backbones, str) else ["resnet18"]
        raise InputError(f"backbones is {backbones!r}; it must be a list of names, such as {one}")
    if not _is_list(sizes, int):
        one_size = [sizes] if isinstance(sizes, int) else [224]
        raise InputError(f"sizes is {sizes!r}; it must be a list of whole numbers, such as {one_size}")


@naming_options
def check_backbones(names: Sequence[str]) -> None:
    """Raise InputError for a name that is not one of a backbone."""
    for name in names:
        check_name(name)


def _is_list(values: object, kind: type) -> bool:
    return isinstance(values, Sequence) and all(type(value) is kind for value in values)


@naming_options
def config_of(
    root: str,
    *,
    on_bad_file: str,
    split: str | None,
    groups: str,
    columns: Mapping[str, Any],
    folds: int,
    seed: int,
    bank: str | None,
) -> RunConfig:
    """Of a frozen head on the images that a run with these options trains on. split: None for the folders, or for a new
    split if there are groups. Raises InputError for values that cannot be combined."""
    if folds < 3:
        raise InputError(f"--folds is {folds}; it must be at least 3, because nested cross-validation leaves out 2")
    if folds > MOST_FOLDS:
        raise InputError(
            f"--folds is {folds}; it must be at most {MOST_FOLDS}, because the work grows with the square of the folds"
        )
    if split is None:
        split = "stratified" if groups or columns.get("group_column") else "folder"
    data: dict[str, Any] = {"on_bad_file": on_bad_file, "split": split, "groups": groups, **columns}
    return RunConfig(
        seed=seed,
        data=DataConfig(root=root, **data),
        model=ModelConfig(),
        strategy=StrategyConfig(name="frozen_head"),
        probe=ProbeConfig(folds=folds),
        runtime=RuntimeConfig(bank=bank or ""),
    )


@naming_options
def check_places(data: DataConfig, out: str | None) -> None:
    """Raise InputError if there is no such source, or nothing can be written to the folder `out`."""
    open_source(data).check()
    if out is None:
        return
    check_local(out)
    check_links(out)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if (folder / RESULT_FILES[0]).exists():
        raise InputError(f"--out {out} already contains {RESULT_FILES[0]}; name another folder")
    above = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: no permission to write in {above}; name another place")
    check_outside(folder, data.root)
