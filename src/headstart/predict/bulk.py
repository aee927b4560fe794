"""Bulk prediction: any number of images to the first rows for the screen, a file, or a folder of parts."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from headstart.files import incomplete, write_atomically
from headstart.predict.image_paths import Listed
from headstart.predict.output_table import Columns, TableFile
from headstart.predict.parts_folder import PartsFolder
from headstart.predict.stream import Computed, stream, stream_repeatably
from headstart.runtime.signals import StopRequest

PREVIEW_ROWS = 40
PROGRESS_S = 10.0


class BulkPrediction:
    """Predicts images batch by batch, prints the progress to standard error, and ends early if `stop` was requested.

    count: images so far. counts: images so far by predicted class, None for unreadable ones. preview: the first
    rows."""

    def __init__(self, columns: Columns, *, batch_size: int | None, num_workers: int | None, stop: StopRequest) -> None:
        self.columns, self.stop = columns, stop
        self.count = 0
        self.counts: Counter[str | None] = Counter()
        self.preview: list[dict[str, Any]] = []
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": num_workers,
            "stopped": lambda: stop.signal_name is not None,
        }
        self._started = self._printed = 0.0

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.count / max(time.perf_counter() - self._started, 1e-9)

    def to_file(self, images: Iterable[Listed], out: Path | None) -> None:
        """Predict the images; `out` (.csv, .jsonl or .parquet) appears when it is complete.

        What a stop cut short is at `incomplete(out)`."""
        rows = self._rows(stream(self.columns.predictor, images, **self._options))
        if out is None:
            for _ in rows:
                pass
            return

        def write(staging: Path) -> None:
            file = TableFile(staging, self.columns.schema, suffix=out.suffix)
            for batch in rows:
                file.write(batch)
            file.close()

        write_atomically(incomplete(out), write)
        if self.stop.signal_name is None:
            os.replace(incomplete(out), out)

    def to_parts(self, folder: PartsFolder, ranges: list[tuple[int, int]]) -> None:
        """Predict ranges of rows of the folder's list. A stop leaves a part of the range in work."""
        expected = sum(end - start for start, end in ranges)
        computed = stream_repeatably(self.columns.predictor, folder.images(ranges), **self._options)
        rows = self._rows(computed, expected)
        for start, end in ranges:  # each begins and ends with a batch
            batches, at = [], start
            while at < end and (batch := next(rows, None)) is not None:
                batches.append(batch)
                at += len(batch)
            if batches:
                folder.write_part(start, batches, self.columns.schema)

    def _rows(self, computed: Iterable[Computed], expected: int | None = None) -> Iterator[pa.RecordBatch]:
        self._started = self._printed = time.perf_counter()
        for done in computed:
            rows = self.columns.rows(done)
            self.count += len(rows)
            self.counts.update(rows.column("predicted").to_pylist())
            if missing := PREVIEW_ROWS - len(self.preview):
                names = ["path", "predicted", "probability", "error"]
                self.preview += rows.slice(0, missing).select(names).to_pylist()
            self._print_progress(expected)
            yield rows

    def _print_progress(self, expected: int | None) -> None:
        now = time.perf_counter()
        if now - self._printed >= PROGRESS_S and os.environ.get("RANK", "0") == "0":
            self._printed = now
            of = "" if expected is None else f" of {expected:,}"
            print(f"{self.count:,}{of} images, {self.rate:.0f} img/s", file=sys.stderr, flush=True)
