"""webdataset's tar shards: each image is read at its offset in the shard."""

import codecs
import json
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from headstart.config import DataConfig
from headstart.data.folder_walk import is_hidden, is_image
from headstart.data.source import Entry, Scan, Skipped, Source
from headstart.data.sources.columns import cell, class_name, collect, option, required
from headstart.data.sources.shard import Shard, has_tests, shard_of, used_shards
from headstart.errors import InputError
from headstart.wording import listed, one_line

_Place = tuple[int, int]  # offset and bytes in the shard


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
    _places: dict[str, _Place] = field(default_factory=dict, compare=False, repr=False)

    def scan(self) -> Scan:
        skipped: list[Skipped] = []
        self._places.clear()
        return collect(
            self._entries(skipped), skipped, where=self.root, unread_tests=not self.tests and has_tests(self.shards)
        )

    def _entries(self, skipped: list[Skipped]) -> Iterator[Entry]:
        for short, shard in used_shards(self.shards, skipped, tests=self.tests):
            members = _members(shard)
            skipped += [Skipped(f"{short}/{name}", reason) for name, reason in members.unusable.items()]
            for key, names in members.samples.items():
                sample = _Sample(f"{shard.name}, {key}", key, names, members.texts, self.data)
                for name, label, group in sample.images():
                    if label:
                        self._places[f"{short}/{name}"] = members.places[name]
                        yield Entry(f"{short}/{name}", label, shard.split, group, shard.stamp)
                skipped += [Skipped(f"{short}/{name}", reason) for name, reason in sample.unused.items()]

    def read(self, path: str) -> bytes:
        if not self._places:
            self.scan()  # in a process that was not forked
        return self.shards[shard_of(path, self.shards)].read(*self._places[path])


class _Sample:
    """The members of one key of webdataset: the name up to the first dot.

    names: its members; texts: the content of .cls and .json, by name; where: for messages; unused: what `images` did
    not yield, with the reason."""

    def __init__(self, where: str, key: str, names: list[str], texts: Mapping[str, bytes], data: DataConfig) -> None:
        self.unused: dict[str, str] = {}
        self._where, self._key, self._names, self._texts, self._data = where, key, names, texts, data
        self._cls = {_stem(name): name for name in names if _ends(name, ".cls") and name in texts}
        self._json = {_stem(name): name for name in names if _ends(name, ".json") and name in texts}

    def images(self) -> Iterator[tuple[str, str, str]]:
        """(name, class, group). An image with a .cls or .json of its own name but for the extension has that class.
        Of all others one is used: that of data.image_column, or the one without more dots in its name.

        Raises InputError if neither decides."""
        images = [name for name in self._names if is_image(name)]
        own = [name for name in images if _stem(name) != self._key and self._has_class(_stem(name))]
        if (column := self._data.image_column) is not None:
            column = column.removeprefix(".").lower()
            own = [name for name in own if _ends(name, f".{column}")]
            rest = [name for name in self._names if name not in own and self._column_of(name) == column]
        else:
            rest = [name for name in images if _stem(name) == self._key]
            rest = rest or [name for name in images if name not in own]
            if len(rest) > 1:
                raise InputError(
                    f"{self._where}: this sample has several images ({', '.join(map(self._column_of, rest))}); name "
                    f"the one to use with {option('image_column')}. Different images need names without dots before "
                    "the extension, or a .cls each"
                )
        for name in own:
            yield name, self._label_of(_stem(name)), self._group([_stem(name)])
        for name in rest:
            others = [stem for stem in {**self._cls, **self._json} if stem not in map(_stem, own)]
            stems = [_stem(name), self._key, *others]
            label = self._label(stems[:2], stems[2:])
            if not label:
                self.unused[self._key] = self._why_no_class(stems)
            yield name, label, self._group(stems)
        used = {*own, *rest}
        if not used:
            self.unused[self._key] = "no image"
        elif self._key not in self.unused:
            self.unused |= {name: "another image of the same sample" for name in images if name not in used}

    def _column_of(self, name: str) -> str:
        """webdataset's name of a member: the part after the key."""
        return name[len(self._key) + 1 :].lower()

    def _label(self, stems: list[str], others: list[str]) -> str:
        """The class beside the first of `stems` that has one, or else beside `others` if they agree; "" if there is
        none."""
        for stem in stems:
            if label := self._label_of(stem):
                return label
        labels = sorted({self._label_of(stem) for stem in others} - {""})
        if len(labels) > 1:
            raise InputError(
                f"{self._where}: this sample has several classes ({listed(labels)}); keep one .cls, named like the "
                "image but for the extension"
            )
        return labels[0] if labels else ""

    def _label_of(self, stem: str) -> str:
        """The text of .cls, or the label column of .json, which takes precedence if data.label_column names it."""
        label = ""
        if (cls := self._cls.get(stem)) is not None:
            where = f"{self._where}: {cls}"
            label = class_name(_text(self._texts[cls], where=where), where=where, column="cls")
        if label and self._data.label_column is None:
            return label
        if (values := self._values(stem)) is None:
            return label
        column = self._required("label_column", values)
        return class_name(values[column], where=f"{self._where}: {self._json[stem]}", column=column)

    def _has_class(self, stem: str) -> bool:
        try:
            return bool(self._label_of(stem))
        except InputError:  # the .json describes something else
            return False

    def _group(self, stems: list[str]) -> str:
        if self._data.group_column is None:
            return ""
        found = (values for stem in stems if (values := self._values(stem)) is not None)
        values = next(found, None)
        return "" if values is None else cell(values, self._required("group_column", values), where=self._where)

    def _required(self, key: str, values: dict[str, Any]) -> str:
        return required(key, self._data, list(values), where=self._where)

    def _values(self, stem: str) -> dict[str, Any] | None:
        """The object in .json, None if there is none."""
        try:
            values = json.loads(self._texts[self._json[stem]])  # in UTF-8, 16 or 32, with or without byte order mark
        except (KeyError, ValueError):
            return None
        return values if isinstance(values, dict) else None

    def _why_no_class(self, stems: list[str]) -> str:
        broken = [self._json[stem] for stem in stems if stem in self._json and self._values(stem) is None]
        return f"no class: {broken[0]} is not a JSON object" if broken else _NO_CLASS


_NO_CLASS = "no class: expected .cls or .json of the same name beside it"


@dataclass
class _Members:
    """samples: the names of members by webdataset's key; places: offset and bytes of each; texts: the content of .cls
    and .json; unusable: name -> reason."""

    samples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    places: dict[str, _Place] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> None:
        path = PurePosixPath(name)
        if not any(is_hidden(part) for part in path.parts):
            self.samples[str(path.parent / path.name.split(".")[0])].append(name)


def _members(shard: Shard) -> _Members:
    """Names that are not UTF-8 have backslash escapes: the class is not in the name."""
    found, links = _Members(), dict[str, str]()
    try:
        with (
            shard.open() as raw,
            tarfile.open(fileobj=raw, mode="r:", encoding="utf-8", errors="backslashreplace") as archive,
        ):
            for member in archive:
                name = str(PurePosixPath(member.name))
                if member.issym() or member.islnk():
                    above = posixpath.dirname(name) if member.issym() else ""
                    links[name] = posixpath.normpath(posixpath.join(above, member.linkname))
                elif member.issparse():
                    found.unusable[name] = "stored as a sparse file, which has no single place in the archive"
                elif member.isfile():
                    if name not in found.places:
                        found.add(name)
                    found.places[name] = (member.offset_data, member.size)
                    if _ends(name, ".cls", ".json"):
                        found.texts[name] = _content(archive, member)
            _follow(links, found, raw)
    except Exception as error:  # tarfile's errors, and those of a file system behind a URL
        raise InputError(f"{shard.name} cannot be read as tar: {one_line(error)}") from None
    return found


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    return content.read() if content else b""


def _follow(links: dict[str, str], found: _Members, raw: Any) -> None:
    """Give links to members their places; those that lead elsewhere and look like images are unusable."""
    for name, target in links.items():
        passed = {name}
        while target in links and target not in passed:  # a link to a link
            passed.add(target)
            target = links[target]
        if target in found.places:
            found.places[name] = found.places[target]
            found.add(name)
            if _ends(name, ".cls", ".json"):
                offset, size = found.places[name]
                raw.seek(offset)
                found.texts[name] = raw.read(size)
        elif is_image(name) or _ends(name, ".cls", ".json"):
            found.unusable[name] = f"a link to {target}, which is not in the archive"


def _text(content: bytes, *, where: str) -> str:
    """A class in UTF-8, or in UTF-16 with a byte order mark. Raises InputError."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"{where} is {content[:40]!r}, which is not UTF-8; save it as UTF-8") from None


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _ends(name: str, *suffixes: str) -> bool:
    return posixpath.splitext(name)[1].lower() in suffixes
