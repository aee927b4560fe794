"""Class folders in a zip archive."""

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace

from headstart.data.folder_walk import RUN_FOLDER, is_hidden, is_run, stamp_of
from headstart.data.source import Entry, PerProcess, Scan, Skipped, Source, same_name
from headstart.data.sources.columns import is_text
from headstart.data.sources.folders import NAMES_OF_FOLDERS, Tree, lay_out
from headstart.errors import InputError


@dataclass
class ZippedFolders(Source):
    """A zip archive of class folders. Each image is read from it when it is needed; nothing is unpacked."""

    root: str
    instead_of_columns = NAMES_OF_FOLDERS

    def __post_init__(self) -> None:
        self._archives = PerProcess(_Archive, self.root)

    def scan(self) -> Scan:
        """A single folder at the top that holds folders is passed through: the archive contains it, not only its
        content."""
        archive = self._archives.get()
        tree = archive.tree(stamp=stamp_of(os.stat(self.root)))
        tops = {name.split("/")[0] for name in tree.folders}
        top = f"{tops.pop()}/" if len(tops) == 1 and any("/" in name for name in tree.folders) else ""
        inner = Tree(
            [(name.removeprefix(top), stamp) for name, stamp in tree.files if name.startswith(top)],
            [name.removeprefix(top) for name in tree.folders if name.startswith(top)],
            passed_over=[replace(one, path=one.path.removeprefix(top)) for one in tree.passed_over],
        )
        scan = lay_out(inner, f"{self.root}/{top}" if top else self.root)
        entries = [replace(entry, path=top + entry.path) for entry in scan.entries]
        bad = {_class_folder(entry) for entry in entries if entry.label in archive.unclear}
        return Scan(
            [entry for entry in entries if entry.label not in archive.unclear],
            [replace(skipped, path=top + skipped.path) for skipped in scan.skipped]
            + [Skipped(name, "listed twice in the archive; the last one is used") for name in archive.twice],
            tuple(top + name for name in scan.empty),
            tuple(Skipped(folder, _UNCLEAR, "bad_name") for folder in sorted(bad)),
            has_test=scan.has_test,
        )

    def read(self, path: str) -> bytes:
        return self._archives.get().read(path)


class _Archive:
    """An open zip. Names are posix, without ./ and leading /, whatever program wrote them. In an unknown encoding,
    bytes beyond ASCII have backslash escapes. unclear: such names of files and folders."""

    def __init__(self, root: str) -> None:
        try:
            self._zip = zipfile.ZipFile(root)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{root} cannot be read as a zip archive: {error}") from None
        self._root = root
        self._files: dict[str, zipfile.ZipInfo] = {}
        self._folders: list[str] = []
        self.twice: list[str] = []
        self.unclear: set[str] = set()
        for entry in self._zip.infolist():
            written = _name(entry)
            if is_text(written) or "/" not in written:  # a backslash may be half a letter of an Asian code page
                written = written.replace("\\", "/")
            parts = [part for part in written.split("/") if part not in ("", ".")]
            self.unclear |= {same_name(_escaped(part)) for part in parts if not is_text(part)}
            name = "/".join(map(_escaped, parts))
            if written.endswith("/"):
                self._folders.append(name)
            else:
                if name in self._files and name not in self.twice:
                    self.twice.append(name)
                self._files[name] = entry

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._files[name])
        except (KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise OSError(f"not readable in {self._root}: {error}") from None

    def tree(self, *, stamp: str) -> Tree:
        """Without hidden entries. stamp: of all files."""
        tree, folders = Tree(), set()
        runs = self._runs()
        tree.passed_over = [Skipped(f"{run}/", RUN_FOLDER, "unused_folder") for run in runs]
        for names, is_file in ((self._files, True), (self._folders, False)):
            for name in names:
                parts = name.split("/")
                if not name or any(is_hidden(part) for part in parts):
                    continue
                if any(f"{name}/".startswith(f"{run}/") for run in runs):
                    continue
                folders |= {"/".join(parts[: depth + 1]) for depth in range(len(parts) - is_file)}
                if is_file:
                    tree.files.append((name, stamp))
        tree.files.sort()
        tree.folders = sorted(folders)
        return tree

    def _runs(self) -> list[str]:
        """The folders of runs, as `walk` finds them in a folder."""
        inside: dict[str, set[str]] = {}
        for name in self._files:
            folder, _, config = name.rpartition("/")
            if config == "config.yaml" and folder:
                inside[folder] = set()
        for name in self._files if inside else ():
            for folder in inside:
                if name.startswith(f"{folder}/"):
                    inside[folder].add(name.removeprefix(f"{folder}/").split("/")[0])
        return sorted(folder for folder, names in inside.items() if is_run(names))


_UTF8 = 0x800  # the flag of an entry whose name is UTF-8
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field: version (1 byte), CRC-32 of the name in the header, name in UTF-8
_UNCLEAR = (
    "the name of this class is not in UTF-8, and the archive does not record its encoding; unpack it, for example with "
    "'unzip -O CP850' (Chinese: CP936, Japanese: CP932), and name the folder"
)


def _class_folder(entry: Entry) -> str:
    parts = entry.path.split("/")
    return "/".join(parts[: [same_name(part) for part in parts].index(entry.label) + 1]) + "/"


def _escaped(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _name(entry: zipfile.ZipInfo) -> str:
    """The name of an entry, with surrogates for bytes of an unknown encoding. Without the flag of UTF-8, zipfile takes
    all names as code page 437, but most programs write UTF-8."""
    if entry.flag_bits & _UTF8 or entry.filename.isascii():
        return entry.filename
    try:
        written = entry.orig_filename.encode("cp437")
    except UnicodeEncodeError:  # zipfile of a later Python has read the extra field
        return entry.filename
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and content[:5] == struct.pack("<BL", 1, zlib.crc32(written)):
            return content[5:].decode("utf-8", "surrogateescape")
    return written.split(b"\0")[0].decode("utf-8", "surrogateescape")
