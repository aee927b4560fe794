"""What a source of images is. A new one derives from `Source`, and data/sources/open.py opens it."""

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from headstart.wording import shown

T = TypeVar("T")
PARTS: frozenset[str | None] = frozenset({"train", "val", None})
"""The values of Entry.split that training uses. Other splits, such as a test set, take no part."""
WINDOW_BYTES = 128 * 2**20
"""Most memory of the blocks whose images are shuffled together."""


class Source(Protocol):
    """Where images come from, the base class of all sources. Everything after it is the same for all of them."""

    root: str
    """As the user named it."""
    columns: ClassVar[tuple[str, ...]] = ()
    """The keys data.*_column that it uses; any other that is set is refused."""
    instead_of_columns: ClassVar[str] = ""
    """For that message: what takes the place of the columns that it lacks."""

    @property
    def identity(self) -> str:
        """Together with the name of an image: which image it is, on this machine. Key of the scan's cache."""
        return self.root if "://" in self.root else os.path.abspath(self.root)

    def check(self) -> None:
        """Raise InputError if it is known without a scan that there is nothing to train on."""
        return

    def scan(self) -> "Scan":
        """All images and their labels, without reading them. Raises InputError if there is nothing to train on."""

    def read(self, path: str) -> bytes:
        """The image file of this name. Raises OSError. Called from threads and from forked processes."""


def same_name(name: str) -> str:
    """The one spelling of a class or group, for names that no reader can tell apart: accents composed (NFC; macOS
    decomposes them), no white space at the ends."""
    return name.strip() or name if name.isascii() else unicodedata.normalize("NFC", name).strip() or name


@dataclass(frozen=True, slots=True)
class Entry:
    """An image that a source has.

    path: its name in the source; label: its class, as `same_name` spells it; split: "train", "val", another name that
    the source uses, None if it has none;
    group: images of one group stay on one side of a split; stamp: changes when the file does, "" if unknown;
    block: images that are cheap to read together, such as a row group of a parquet file; size: bytes of memory per
    image while the block is loaded."""

    path: str
    label: str
    split: str | None = None
    group: str = ""
    stamp: str = ""
    block: str = ""
    size: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", same_name(self.label))
        object.__setattr__(self, "group", same_name(self.group))


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, or a folder (its path ends in "/"), and why. path: relative to the data root; kind: of
    data_doctor/findings.py."""

    path: str
    reason: str
    kind: str = "left_out"

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/")


@dataclass(frozen=True)
class Scan:
    """empty: class folders without any image, relative to the root; bad: images that cannot be used, and folders that
    cannot be read, whose names end in "/"; has_test: whether there is a test set, also one without classes;
    unread_tests: whether it was not read."""

    entries: list[Entry]
    skipped: list[Skipped]
    empty: tuple[str, ...] = ()
    bad: tuple[Skipped, ...] = ()
    has_test: bool = False
    unread_tests: bool = False

    @property
    def num_test(self) -> int | None:
        """The images of the test set that have a class; None if they were not read."""
        return None if self.unread_tests else sum(entry.split == "test" for entry in self.entries)


class PerProcess(Generic[T]):
    """Something like an open file, which forked or pickled copies must not share: each process opens its own."""

    def __init__(self, make: Callable[..., T], *arguments: Any) -> None:
        self._make, self._arguments = make, arguments
        self._made: tuple[int, T] | None = None

    def get(self) -> T:
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), self._make(*self._arguments)
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None}


def place_in(source: Source, path: str) -> str:
    """How a message names a file or folder of the source."""
    return f"{source.root.rstrip('/')}/{path}"


def summarize(reasons: Sequence[Skipped], *, limit: int = 5) -> str:
    """'a/b.jpg (reason), c/d.png (reason) and 7 more'."""
    text = ", ".join(f"{shown(s.path)} ({s.reason})" for s in reasons[:limit])
    return text + (f" and {len(reasons) - limit} more" if len(reasons) > limit else "")
