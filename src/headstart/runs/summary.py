"""summary.json: what a finished run came to, written and read here. Imports no torch."""

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from headstart.files import write_json
from headstart.runs.files import damaged, mapping_with, read_json
from headstart.runs.folder import RunFolder
from headstart.runs.lock import SUMMARY


@dataclass(frozen=True, kw_only=True)
class _Json:
    """A dataclass of JSON values. Fields that are None by default are left out of the file while they are None."""

    @classmethod
    def from_json(cls, path: Path, values: Mapping[str, Any]) -> Self:
        """Raises InputError naming the file if a field is missing or of another type; other names are ignored."""
        hints = get_type_hints(cls)
        required = [field.name for field in fields(cls) if field.default is not None]
        mapping_with(path, values, required)
        for name in hints.keys() & values.keys():
            if not _fits(values[name], hints[name]):
                raise damaged(path, f"{name} is {values[name]!r}")
        return cls(**{name: values[name] for name in hints if name in values})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises InputError if the file is missing, damaged, or of another kind of run."""
        return cls.from_json(folder / SUMMARY, read_json(folder, SUMMARY))

    def to_json(self) -> dict[str, Any]:
        optional = {field.name for field in fields(self) if field.default is None}
        return {name: value for name, value in asdict(self).items() if value is not None or name not in optional}

    def write(self, folder: RunFolder) -> None:
        write_json(folder.path / SUMMARY, self.to_json())


@dataclass(frozen=True, kw_only=True)
class Summary(_Json):
    """The summary of one run."""

    strategy: str
    backbone: str
    classes: list[str]
    train: dict[str, int]  # "n": training images; "limit": data.limit, if it is set
    val: dict[str, Any]  # evaluation.predictions.describe
    test: dict[str, int | None] | None = None  # "n": labelled images of the test set, null if they were not counted
    best_epoch: int  # 0: the probe that tuning started from
    epochs: int
    wall_s: float
    train_images_per_s: float | None  # images trained on, or whose features were computed; None if there were none
    world_size: int
    device: str
    mixed_precision: str
    seed: int
    weights: str
    weights_sha256: str | None
    manifest_sha256: str
    model_sha256: str
    skipped: list[dict[str, Any]]  # files that are not used, with the reason
    versions: dict[str, str]
    calibration: dict[str, Any]  # evaluation.predictions.describe_calibration
    probe: dict[str, Any] | None = None  # how a head on cached features was fitted, and what tuning made of it
    features: dict[str, Any] | None = None  # the feature bank and what was computed for it
    finished: str | None = None  # date and time of the end, UTC, as 2026-01-31T12:00:00Z


@dataclass(frozen=True, kw_only=True)
class RepeatsSummary(_Json):
    """The summary of the same recipe with several seeds or on every fold."""

    repeats: str  # "seeds" or "folds"
    strategy: str
    backbone: str
    classes: list[str]
    seed: int
    epochs: int
    weights: str
    same_images: bool  # whether all runs were evaluated on the same images
    epoch_chosen_on_val: bool
    runs: list[dict[str, Any]]  # folder, seed, fold, n, correct, accuracy, loss, best_epoch, wall_s of each
    spread: dict[str, dict[str, Any]]  # of "accuracy" and "loss": mean, sd, lowest, highest; of accuracy also ci95
    val: dict[str, Any]  # over all runs
    versions: dict[str, str]
    wall_s: float


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of this type; what lists and dicts hold is not looked at."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    kind = get_origin(hint) or hint
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
