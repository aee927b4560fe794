"""Class folders in a zip archive."""

import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from headstart.data.samples import PerProcess, Scan, Skipped
from headstart.data.sources.folders import Tree, check_name, is_hidden, lay_out, stamp_of
from headstart.errors import InputError


class ZippedFolders:
    """A zip archive of class folders. Each image is read out of it when it is needed; nothing is unpacked."""

    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(self, root: str) -> None:
        self.root = root
        self._archives = PerProcess(_Archive, root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZippedFolders) and self.root == other.root

    __hash__ = None  # type: ignore[assignment]

    @property
    def identity(self) -> str:
        return os.path.abspath(self.root)

    def scan(self) -> Scan:
        """A single folder at the top that holds folders is passed through: the archive of a folder rather than of its content."""
        archive = self._archives.get()
        tree = tree_of(archive.files, archive.folders, stamp=stamp_of(os.stat(self.root)))
        tops = {name.split("/")[0] for name in tree.folders}
        top = f"{tops.pop()}/" if len(tops) == 1 and any("/" in name for name in tree.folders) else ""
        inner = Tree(
            [(name.removeprefix(top), stamp) for name, stamp in tree.files if name.startswith(top)],
            [name.removeprefix(top) for name in tree.folders if name.startswith(top)],
        )
        scan = lay_out(inner, f"{self.root}/{top}" if top else self.root)
        return Scan(
            [replace(entry, path=top + entry.path) for entry in scan.entries],
            [Skipped(top + s.path, s.reason) for s in scan.skipped]
            + [Skipped(name, "listed twice in the archive; the last one counts") for name in archive.twice],
            tuple(top + name for name in scan.empty),
        )

    def read(self, path: str) -> bytes:
        return self._archives.get().read(path)


class _Archive:
    """An open zip. files: posix name of each file without ./ and leading /, whatever the program that wrote it did."""

    def __init__(self, root: str) -> None:
        try:
            self._zip = zipfile.ZipFile(root)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{root} cannot be read as a zip archive: {error}") from None
        self._root = root
        self.files: dict[str, zipfile.ZipInfo] = {}
        self.folders: list[str] = []
        self.twice: list[str] = []
        for entry in self._zip.infolist():
            written = entry.filename.replace("\\", "/")
            name = "/".join(part for part in written.split("/") if part not in ("", "."))
            if written.endswith("/"):
                self.folders.append(name)
            else:
                if name in self.files and name not in self.twice:
                    self.twice.append(name)
                self.files[name] = entry

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self.files[name])
        except (KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise OSError(f"not readable in {self._root}: {error}") from None


def tree_of(files: Iterable[str], folders: Iterable[str], *, stamp: str) -> Tree:
    """Of the posix names of an archive that has one stamp for all."""
    tree = Tree()
    known: set[str] = set()
    for names, is_file in ((files, True), (folders, False)):
        for name in names:
            parts = name.split("/")
            if not name or any(is_hidden(part) for part in parts):
                continue
            check_name(name)
            known |= {"/".join(parts[: depth + 1]) for depth in range(len(parts) - is_file)}
            if is_file:
                tree.files.append((name, stamp))
    tree.files.sort()
    tree.folders = sorted(known)
    return tree
