"""webdataset's tar shards: each image is read at its offset in the shard."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import ClassVar

from headstart.config import DataConfig
from headstart.data.folder_walk import is_hidden, is_image
from headstart.data.source import Entry, Scan, Skipped
from headstart.data.sources.columns import collect, required, text
from headstart.data.sources.shard import Shard, place_of, shard_of, used_shards
from headstart.errors import InputError
from headstart.wording import one_line

_TEXTS = (".cls", ".json")


@dataclass(frozen=True)
class TarShards:
    """Images are named SHARD/MEMBER. The class is in the member of the same name with .cls or .json. tests: whether
    test shards are read."""

    root: str
    data: DataConfig
    shards: dict[str, Shard]
    tests: bool = False
    columns: ClassVar[tuple[str, ...]] = ("image_column", "label_column", "group_column")
    instead_of_columns: ClassVar[str] = "the name of a shard gives train or val"
    _places: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def identity(self) -> str:
        return place_of(self.root)

    def scan(self) -> Scan:
        skipped: list[Skipped] = []
        self._places.clear()
        return collect(self._entries(skipped), skipped, where=self.root)

    def _entries(self, skipped: list[Skipped]) -> Iterator[Entry]:
        for short, shard in used_shards(self.shards, skipped, tests=self.tests):
            for key, sample in _samples(shard).items():
                images = [name for name in sample.places if self._is_image(name)]
                label, group = self._label_and_group(shard, sample.texts)
                if not images or not label:
                    lacks = "no image" if not images else "no class: expected .cls or .json of the same name beside it"
                    skipped.append(Skipped(f"{short}/{key}", lacks))
                    continue
                name = f"{short}/{images[0]}"
                self._places[name] = sample.places[images[0]]
                skipped += [Skipped(f"{short}/{more}", "a second image of the same sample") for more in images[1:]]
                yield Entry(name, label, shard.split, group, shard.stamp)

    def read(self, path: str) -> bytes:
        if not self._places:
            self.scan()  # in a process that was not forked
        return self.shards[shard_of(path, self.shards)].read(*self._places[path])

    def _is_image(self, name: str) -> bool:
        """data.image_column: webdataset's name of the member, the part after the first dot."""
        if self.data.image_column is None:
            return is_image(name)
        return PurePosixPath(name).name.partition(".")[2] == self.data.image_column.removeprefix(".")

    def _label_and_group(self, shard: Shard, texts: Mapping[str, bytes]) -> tuple[str, str]:
        """The text of .cls, or the label column of .json; the group column of .json."""
        classes = (str(content, "utf-8", "replace").strip() for name, content in texts.items() if _ends(name, ".cls"))
        label, group = next(classes, ""), ""
        for name, content in texts.items():
            if not _ends(name, ".json"):
                continue
            try:
                values = json.loads(content)
            except ValueError:
                continue
            if isinstance(values, dict):
                where = f"{shard.name}, {name}"
                if not label or self.data.label_column is not None:
                    label = text(values[required("label_column", self.data, list(values), where=where)])
                if self.data.group_column is not None:
                    group = text(values[required("group_column", self.data, list(values), where=where)])
        return label, group


@dataclass
class _Sample:
    """The members of one key: their places (offset, bytes), and the content of the small ones."""

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def _samples(shard: Shard) -> dict[str, _Sample]:
    """By webdataset's key, the name up to the first dot."""
    samples: dict[str, _Sample] = {}
    try:
        with shard.open() as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile() or any(is_hidden(part) for part in path.parts):
                    continue
                sample = samples.setdefault(str(path.parent / path.name.split(".")[0]), _Sample())
                sample.places[str(path)] = (member.offset_data, member.size)
                if _ends(path.name, *_TEXTS):
                    content = archive.extractfile(member)
                    assert content is not None
                    sample.texts[str(path)] = content.read()
    except Exception as error:  # tarfile's errors, and those of a file system behind a URL
        raise InputError(f"{shard.name} cannot be read as tar: {one_line(error)}") from None
    return samples


def _ends(name: str, *suffixes: str) -> bool:
    return PurePosixPath(name).suffix.lower() in suffixes
