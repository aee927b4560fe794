"""Class folders in a zip archive."""

import os
import zipfile
import zlib
from dataclasses import dataclass, replace

from headstart.data.folder_walk import is_hidden, stamp_of
from headstart.data.source import PerProcess, Scan, Skipped, Source
from headstart.data.sources.columns import check_name
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
        )
        scan = lay_out(inner, f"{self.root}/{top}" if top else self.root)
        return Scan(
            [replace(entry, path=top + entry.path) for entry in scan.entries],
            [replace(skipped, path=top + skipped.path) for skipped in scan.skipped]
            + [Skipped(name, "listed twice in the archive; the last one is used") for name in archive.twice],
            tuple(top + name for name in scan.empty),
        )

    def read(self, path: str) -> bytes:
        return self._archives.get().read(path)


class _Archive:
    """An open zip. Names are posix, without ./ and leading /, whatever program wrote them."""

    def __init__(self, root: str) -> None:
        try:
            self._zip = zipfile.ZipFile(root)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{root} cannot be read as a zip archive: {error}") from None
        self._root = root
        self._files: dict[str, zipfile.ZipInfo] = {}
        self._folders: list[str] = []
        self.twice: list[str] = []
        for entry in self._zip.infolist():
            written = entry.filename.replace("\\", "/")
            name = "/".join(part for part in written.split("/") if part not in ("", "."))
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
        for names, is_file in ((self._files, True), (self._folders, False)):
            for name in names:
                parts = name.split("/")
                if not name or any(is_hidden(part) for part in parts):
                    continue
                check_name(name)
                folders |= {"/".join(parts[: depth + 1]) for depth in range(len(parts) - is_file)}
                if is_file:
                    tree.files.append((name, stamp))
        tree.files.sort()
        tree.folders = sorted(folders)
        return tree
