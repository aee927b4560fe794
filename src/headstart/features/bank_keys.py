"""What feature banks hold on disk: list the keys, delete old ones (`headstart data bank`)."""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.errors import InputError


@dataclass(frozen=True)
class Stored:
    """The folder of one key."""

    name: str
    path: Path
    key: Mapping[str, Any]
    num_shards: int
    num_bytes: int
    used: float  # seconds since the epoch


def stored(location: Path) -> list[Stored]:
    """The keys in the folder `location`, the most recently used first."""
    found = []
    for path in location.glob("*/key.json") if location.is_dir() else []:
        folder = path.parent
        try:
            key = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            key = {}
        shards = [shard.stat() for shard in folder.glob("*.safetensors")]
        used = folder.stat().st_mtime
        found.append(Stored(folder.name, folder, key, len(shards), sum(shard.st_size for shard in shards), used))
    return sorted(found, key=lambda entry: -entry.used)


def prune(location: Path, *, name: str | None = None, unused_days: float | None = None) -> list[Stored]:
    """Delete the keys whose name starts with `name` ("all": every key), or those not used for `unused_days`; one of the
    two is given.

    Returns the deleted keys. Raises InputError if no key has the name, and for a number of days that is not above 0.
    """
    if name is not None and unused_days is not None:
        raise InputError("--prune KEY and --prune_unused DAYS are two ways to choose what to delete; use one of them")
    entries = stored(location)
    if unused_days is not None:
        if not (math.isfinite(unused_days) and unused_days > 0):
            raise InputError(
                f"--prune_unused is {unused_days}; use a number of days above 0, or --prune all to delete every key"
            )
        gone = [entry for entry in entries if time.time() - entry.used > unused_days * 86400]
    else:
        assert name is not None
        gone = [entry for entry in entries if name == "all" or entry.name.startswith(name)]
        if not gone and name != "all":
            raise InputError(f"{location} has no key {name}; headstart data bank lists the keys")
    for entry in gone:
        shutil.rmtree(entry.path)
    return gone
