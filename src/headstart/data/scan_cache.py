"""What was found in files that have not changed since: the hash of their content, and that they decode.

A row is trusted while size, modification time and inode of its file are what they were. A file that was modified within
seconds of the scan has no row: it could change again without its time changing.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.arrow import strings
from headstart.data.decode import DECODER
from headstart.data.samples import Entry, Source
from headstart.files import cache_folder, write_atomically


class Index:
    """The rows of one source, one per entry; a file in the user's cache folder that may be deleted at any time."""

    def __init__(self, path: Path, entries: Sequence[Entry], sha256: list[str | None]) -> None:
        """sha256: what is known of each entry."""
        self.path, self.entries, self.sha256 = path, entries, sha256

    @staticmethod
    def of(source: Source, entries: Sequence[Entry], *, use: bool) -> "Index":
        """entries: all that the source has; use: False to know nothing, so that everything is looked at again."""
        key = f"{source.identity}\n{DECODER}\n{PIL.__version__}"
        path = cache_folder() / "index" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
        unknown: list[str | None] = [None] * len(entries)
        if not use or not path.is_file():
            return Index(path, entries, unknown)
        import pyarrow.compute as pc

        try:
            rows = pq.ParquetFile(path, page_checksum_verification=True).read()  # read_table would import pandas
            places = pc.index_in(_names(entries), value_set=rows.column("name").combine_chunks())
            found = rows.column("sha256").take(places).to_pylist()
        except (OSError, pa.ArrowException, KeyError):  # damaged, or of another version
            return Index(path, entries, unknown)
        return Index(path, entries, [sha if entry.stamp else None for entry, sha in zip(entries, found, strict=True)])

    def store(self, found: Sequence[str | None]) -> None:
        """Add what was found now, if it says anything new. found: the sha256 of each entry, None for one that was not looked
        at, of which what was known stays, or that cannot be used."""
        rows = [
            (entry, new or old, old is None)
            for entry, old, new in zip(self.entries, self.sha256, found, strict=True)
            if entry.stamp and (new or old)
        ]
        if not any(is_new for _, _, is_new in rows):
            return
        table = pa.Table.from_arrays(
            [_names([entry for entry, _, _ in rows]), strings([str(sha256) for _, sha256, _ in rows])],
            names=["name", "sha256"],
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda path: pq.write_table(table, path, write_page_checksum=True))
        except OSError:  # a full disk or a read-only home: the next start looks at every file again
            return


def _names(entries: Sequence[Entry]) -> pa.Array:
    return strings([f"{entry.path}\n{entry.stamp}" for entry in entries])
