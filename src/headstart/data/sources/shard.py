"""One file of many images, here or behind a URL."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec

from headstart.data.source import PerProcess, Skipped
from headstart.data.sources.columns import split_named
from headstart.wording import one_line


@dataclass(frozen=True)
class Shard:
    """filesystem: of this process, as those of fsspec do not survive a fork; name: in it; short: relative to the folder
    that was named, so that the shards may move; stamp: changes when the file does, or ""."""

    filesystem: PerProcess[fsspec.AbstractFileSystem]
    name: str
    short: str
    stamp: str

    @property
    def split(self) -> str | None:
        """By its folder or the beginning of its name, as in train/00.tar and validation-00000-of-00002.parquet."""
        path = PurePosixPath(self.short)
        for part in (*reversed(path.parts[:-1]), re.split(r"[-_.0-9]", path.name)[0]):
            if (found := split_named(part)) in ("train", "val", "test"):
                return found
        return None

    def open(self) -> Any:
        """The file, opened for reading. Raises OSError."""
        try:
            return self.filesystem.get().open(self.name)
        except Exception as error:  # each file system of fsspec has its own errors
            raise _as_os_error(error) from None

    def read(self, start: int, size: int) -> bytes:
        """Raises OSError."""
        try:
            content = bytes(self.filesystem.get().cat_file(self.name, start=start, end=start + size))
        except Exception as error:
            raise _as_os_error(error) from None
        if len(content) != size:
            raise OSError(f"{len(content):,} bytes of the shard instead of {size:,}")
        return content


def _as_os_error(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(one_line(error))


def used_shards(shards: Mapping[str, Shard], skipped: list[Skipped], *, tests: bool) -> Iterator[tuple[str, Shard]]:
    """(short name, shard). tests: False to add test shards to `skipped` unread."""
    for short, shard in shards.items():
        if shard.split == "test" and not tests:
            skipped.append(Skipped(short, "a test shard, not used in training"))
        else:
            yield short, shard


def has_tests(shards: Mapping[str, Shard]) -> bool:
    """Whether one of them is of a test set."""
    return any(shard.split == "test" for shard in shards.values())


def shard_of(path: str, shards: Mapping[str, Shard]) -> str:
    """SHARD of SHARD/MEMBER; both may contain slashes."""
    end = path.find("/")
    while path[:end] not in shards:
        end = path.index("/", end + 1)
    return path[:end]
