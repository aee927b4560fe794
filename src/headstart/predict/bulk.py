"""Bulk prediction: any number of images to the first rows for the screen, a file, or a folder of parts."""

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa

from headstart.errors import InputError
from headstart.files import incomplete, write_atomically
from headstart.launcher import is_first_process
from headstart.messages import ProgressStyle
from headstart.predict.image_paths import Listed
from headstart.predict.output_table import Columns, TableFile
from headstart.predict.parts_folder import PartsFolder
from headstart.predict.stream import Computed, stream, stream_repeatably
from headstart.runtime.progress import ItemProgress
from headstart.runtime.signals import StopRequest

PREVIEW_ROWS = 40
PREVIEW_COLUMNS = ("path", "predicted", "probability", "error", "prediction_set", "none_of_these", "top")


class BulkPrediction:
    """Predicts images batch by batch, shows the progress on standard error, and ends early if `stop` was requested.

    count: images so far. counts: images so far by predicted class, None for unreadable ones. preview: the first
    rows."""

    def __init__(
        self,
        columns: Columns,
        *,
        batch_size: int | None,
        num_workers: int | None,
        stop: StopRequest,
        count_images: Callable[[], int] | None = None,
    ) -> None:
        """count_images: counts the images that `to_file` gets, which may take long; it is called in a thread, for the
        time left. None if nobody can know."""
        self.columns, self.stop, self._count_images = columns, stop, count_images
        self.count = 0
        self.counts: Counter[str | None] = Counter()
        self.preview: list[dict[str, Any]] = []
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": num_workers,
            "stopped": lambda: stop.signal_name is not None,
        }
        self._started = 0.0

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.count / max(time.perf_counter() - self._started, 1e-9)

    def to_file(self, images: Iterable[Listed], out: Path | None, *, excel: bool = False) -> None:
        """Predict the images; `out` (.csv, .jsonl or .parquet) appears when it is complete. excel: whether a .csv is
        meant for spreadsheet programs.

        What a stop cut short is at `incomplete(out)`."""
        rows = self._rows(stream(self.columns.predictor, images, **self._options))
        if out is None:
            for _ in rows:
                pass
            return

        def write(staging: Path) -> None:
            file = TableFile(staging, self.columns.schema, suffix=out.suffix, excel=excel)
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
        rows.close()  # ends the progress

    def _rows(self, computed: Iterable[Computed], expected: int | None = None) -> Generator[pa.RecordBatch]:
        self._started = time.perf_counter()
        style: ProgressStyle = "terminal" if is_first_process() else "silent"
        progress = None
        with ExitStack() as shown:
            for number, done in enumerate(computed):
                yield self._rows_of(done)
                if number == 1:  # one batch needs no progress, and the workers that copy this process have started
                    progress = ItemProgress(
                        "predict", expected, style=style, began=self._started, stderr=True, log=None
                    )
                    shown.enter_context(progress)
                    if expected is None and self._count_images is not None:
                        Thread(target=self._count_for, args=(progress,), daemon=True).start()
                if progress is not None:
                    progress.advance(self.count - progress.done)

    def _count_for(self, progress: ItemProgress) -> None:
        assert self._count_images is not None
        with suppress(InputError, OSError):  # the images are gone, which the prediction will notice
            progress.total = self._count_images()

    def _rows_of(self, done: Computed) -> pa.RecordBatch:
        rows = self.columns.rows(done)
        self.count += len(rows)
        self.counts.update(rows.column("predicted").to_pylist())
        if missing := PREVIEW_ROWS - len(self.preview):
            shown = [name for name in PREVIEW_COLUMNS if name in rows.schema.names]
            self.preview += rows.slice(0, missing).select(shown).to_pylist()
        return rows
