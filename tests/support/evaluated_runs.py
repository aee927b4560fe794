"""Run folders with given predictions, written without training."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml

from headstart.data.samples import COLUMNS, Sample, Samples
from headstart.runs.folder import predictions_table


def write_evaluated_run(
    folder: Path,
    images: Sequence[tuple[str, str]],
    answers: Sequence[str],
    *,
    classes: Sequence[str] = ("ants", "bees"),
    root: str = "/nowhere",
    epochs: int = 1,
    paths: Sequence[str] | None = None,
    sure: float = 0.7,
) -> Path:
    """What `headstart compare` reads of a run. images: (content, label) each; answers: the predicted classes."""
    folder.mkdir()
    ids = [f"{content[:16]}{number}" for number, (content, _) in enumerate(images)]
    paths = paths or [f"val/{label}/{content}.jpg" for content, label in images]
    rows = zip(ids, paths, images, strict=True)
    samples = [Sample(id, path, content, "val", label) for id, path, (content, label) in rows]
    samples.append(Sample("train", "train/ants/x.jpg", "trained on", "train", classes[0]))
    table = Samples.of(samples, [], None).table.select(COLUMNS)  # type: ignore[arg-type]
    pq.write_table(table, folder / "manifest.parquet")
    probabilities = np.full((len(images), len(classes)), 0.3 / (len(classes) - 1))
    probabilities[np.arange(len(images)), [classes.index(answer) for answer in answers]] = sure
    predictions = predictions_table(
        ids=ids,
        paths=paths,
        labels=[label for _, label in images],
        probabilities=probabilities,
        classes=classes,
    )
    pq.write_table(predictions, folder / "predictions.parquet")
    (folder / "summary.json").write_text(json.dumps({"strategy": "fine_tune", "epochs": epochs}))
    (folder / "config.yaml").write_text(yaml.dump({"data": {"root": root, "of_another_version": 1}}))
    return folder
