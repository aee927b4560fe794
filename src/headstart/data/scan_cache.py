"""Hashes of files that have not changed since an earlier scan, all of which decoded.

A row is valid while the size, modification time and inode of its file stay the same. A file that was modified within
seconds of the scan gets no row: it could change again without a change of its time.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.arrow import strings
from headstart.data.decode import DECODER
from headstart.data.source import Entry, Source
from headstart.files import cache_folder, write_atomically


class ScanCache:
    """One parquet file per source in the user's cache folder; it may be deleted at any time."""

    def __init__(self, path: Path, entries: Sequence[Entry], sha256: list[str | None]) -> None:
        """sha256: of each entry, None if unknown."""
        self.path, self.entries, self.sha256 = path, entries, sha256

    @staticmethod
    def of(source: Source, entries: Sequence[Entry], *, use: bool) -> "ScanCache":
        """entries: all that the source has; use: False to ignore the file, so that every image is read again."""
        key = f"{source.identity}\n{DECODER}\n{PIL.__version__}"
        path = cache_folder() / "index" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
        unknown: list[str | None] = [None] * len(entries)
        if not use or not path.is_file():
            return ScanCache(path, entries, unknown)
        import pyarrow.compute as pc

        try:
            rows = pq.ParquetFile(path, page_checksum_verification=True).read()  # read_table would import pandas
            places = pc.index_in(_names(entries), value_set=rows.column("name").combine_chunks())
            found = rows.column("sha256").take(places).to_pylist()
        except (OSError, pa.ArrowException, KeyError):  # damaged, or of another version
            return ScanCache(path, entries, unknown)
        return ScanCache(path, entries, [sha if e.stamp else None for e, sha in zip(entries, found, strict=True)])

    def store(self, found: Sequence[str | None]) -> None:
        """Write the hashes, if any is new. found: of each entry, None if it was not read (its old hash stays) or cannot
        be used."""
        rows = [
            (entry, new or old, old is None)
            for entry, old, new in zip(self.entries, self.sha256, found, strict=True)
            if entry.stamp and (new or old)
        ]
        if not any(is_new for _, _, is_new in rows):
            return
        columns = [_names([entry for entry, _, _ in rows]), strings([str(sha256) for _, sha256, _ in rows])]
        table = pa.Table.from_arrays(columns, names=["name", "sha256"])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda path: pq.write_table(table, path, write_page_checksum=True))
        except OSError:  # a full disk or a read-only home: the next start reads every file again
            return


def _names(entries: Sequence[Entry]) -> pa.Array:
    return strings([f"{entry.path}\n{entry.stamp}" for entry in entries])
