"""The images of a run, read again: to compare an exported model on them, and to calibrate a quantised one."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from headstart.config_io import load_config
from headstart.data.decode import UnreadableImage, decode
from headstart.data.source import Source
from headstart.data.sources.open import open_source
from headstart.errors import InputError
from headstart.wording import one_line


@dataclass(frozen=True)
class RunImages:
    """missing: why there are none, or None."""

    rows: pa.Table | None = None
    source: Source | None = None
    missing: str | None = None

    @staticmethod
    def of(run: Path, *, data: str | None = None) -> "RunImages":
        """run: a run folder or a model file; data: where the images lie now, if they were moved. Raises InputError if
        `data` names nothing."""
        folder = run if run.is_dir() else run.parent
        try:
            rows = pq.read_table((folder / "manifest.parquet").absolute(), columns=["path", "sha256", "split", "label"])
            config = load_config([folder / "config.yaml"]).data
        except (OSError, ValueError) as error:
            if data is not None:
                raise InputError(
                    f"--data {data}: {folder} has no readable manifest.parquet and config.yaml, which name the "
                    f"validation images ({one_line(error)}); name the run folder"
                ) from None
            return RunImages(missing=f"{folder} has no readable manifest.parquet and config.yaml that name them")
        try:
            source = open_source(replace(config, root=data or config.root))
        except InputError as error:
            if data is not None:
                raise
            return RunImages(missing=str(error))
        if data is not None and rows.num_rows:
            first = rows.column("path")[0].as_py()
            try:
                source.read(first)
            except (OSError, KeyError) as error:
                reason = getattr(error, "strerror", None) or "not there"
                raise InputError(f"--data {data}: {first}, an image of the run, cannot be read ({reason})") from None
        return RunImages(rows, source)

    def of_split(self, split: str, *, at_most: int) -> Iterator[tuple[str, Image.Image, str]]:
        """(path, RGB at full size, label) of images that are what they were, evenly spread over the split."""
        assert self.source is not None
        for row in self.picked(split, at_most=at_most):
            try:
                content = self.source.read(row["path"])
                if hashlib.sha256(content).hexdigest() == row["sha256"]:
                    yield row["path"], decode(content), row["label"]
            except (OSError, KeyError, InputError, UnreadableImage):  # the caller counts those that are missing
                continue

    def picked(self, split: str, *, at_most: int) -> list[dict[str, str]]:
        """Every k-th row of the split. None may be missing."""
        assert self.rows is not None
        rows = self.rows.filter(pc.equal(self.rows.column("split"), split))
        picked: list[dict[str, str]] = rows[:: max(1, -(-rows.num_rows // at_most))].to_pylist()
        return picked
