"""The experiment trackers by name. Knows no torch, so that a mistake is reported at once."""

import importlib.util
from collections.abc import Collection

from headstart.errors import InputError

TRACKERS = ("tensorboard", "trackio", "mlflow", "wandb")
"""The name of a tracker is that of its package, too."""


def trackers_in(names: str, *, registered: Collection[str] = ()) -> list[str]:
    """The names in runtime.trackers, each once. registered: trackers of the user's own, which are known to Accelerate.

    Raises InputError that names all which are unknown, or else all which are not installed."""
    found = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if unknown := [name for name in found if name not in (*TRACKERS, *registered)]:
        raise InputError(f"runtime.trackers {_are(unknown)} unknown; use {', '.join(TRACKERS)}, separated by commas")
    missing = [name for name in found if name in TRACKERS and importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"runtime.trackers {_are(missing)} not installed; pip install {' '.join(missing)}, or omit them"
        )
    return found


def _are(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
