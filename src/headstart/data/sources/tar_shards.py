"""webdataset's tar shards: each image is read at its offset in the shard."""

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from headstart.config import DataConfig
from headstart.data.folder_walk import is_hidden, is_image
from headstart.data.source import Entry, Scan, Skipped, Source
from headstart.data.sources.columns import collect, required, text
from headstart.data.sources.shard import Shard, shard_of, used_shards
from headstart.errors import InputError
from headstart.wording import one_line


@dataclass
class TarShards(Source):
    """Images are named SHARD/MEMBER. The class is in the member of the same name with .cls or .json. tests: whether
    test shards are read."""

    root: str
    data: DataConfig
    shards: dict[str, Shard]
    tests: bool = False
    columns = ("image_column", "label_column", "group_column")
    instead_of_columns = "the name of a shard gives train or val"
    _places: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def scan(self) -> Scan:
        skipped: list[Skipped] = []
        self._places.clear()
        return collect(self._entries(skipped), skipped, where=self.root)

    def _entries(self, skipped: list[Skipped]) -> Iterator[Entry]:
        for short, shard in used_shards(self.shards, skipped, tests=self.tests):
            for key, sample in _samples(shard).items():
                images = [name for name in sample if self._is_image(name)]
                label, group = self._label_and_group(shard, sample)
                if not images or not label:
                    lacks = "no image" if not images else "no class: expected .cls or .json of the same name beside it"
                    skipped.append(Skipped(f"{short}/{key}", lacks))
                    continue
                name = f"{short}/{images[0]}"
                self._places[name] = sample[images[0]].place
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

    def _label_and_group(self, shard: Shard, sample: "Mapping[str, _Member]") -> tuple[str, str]:
        """The text of .cls, or the label column of .json; the group column of .json."""
        classes = [member.text for name, member in sample.items() if _ends(name, ".cls")]
        label, group = str(classes[0], "utf-8", "replace").strip() if classes else "", ""
        for name, member in sample.items():
            try:
                values = json.loads(member.text) if _ends(name, ".json") else None
            except ValueError:
                continue
            if isinstance(values, dict):
                where = f"{shard.name}, {name}"
                if not label or self.data.label_column is not None:
                    label = text(values[required("label_column", self.data, list(values), where=where)])
                if self.data.group_column is not None:
                    group = text(values[required("group_column", self.data, list(values), where=where)])
        return label, group


class _Member(NamedTuple):
    """place: offset and bytes; text: the content of .cls and .json."""

    place: tuple[int, int]
    text: bytes


def _samples(shard: Shard) -> dict[str, dict[str, _Member]]:
    """The members by name, by webdataset's key: the name up to the first dot."""
    samples: dict[str, dict[str, _Member]] = defaultdict(dict)
    try:
        with shard.open() as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile() or any(is_hidden(part) for part in path.parts):
                    continue
                content = archive.extractfile(member) if _ends(path.name, ".cls", ".json") else None
                found = _Member((member.offset_data, member.size), content.read() if content else b"")
                samples[str(path.parent / path.name.split(".")[0])][str(path)] = found
    except Exception as error:  # tarfile's errors, and those of a file system behind a URL
        raise InputError(f"{shard.name} cannot be read as tar: {one_line(error)}") from None
    return samples


def _ends(name: str, *suffixes: str) -> bool:
    return PurePosixPath(name).suffix.lower() in suffixes
