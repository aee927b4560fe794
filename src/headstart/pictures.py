"""PNG files of the run folder: training views, validation predictions, curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from headstart.artifacts import write_atomically

GOOD, BAD = "#1a7f37", "#cf222e"


def image_grid(
    path: Path, images: Sequence[torch.Tensor], titles: Sequence[str], colors: Sequence[str] | None = None
) -> None:
    """uint8 (3, S, S) images in a grid, a title above each."""
    columns = min(6, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.1 * columns, 2.35 * rows), layout="constrained")
    for position, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, position + 1)
        axes.imshow(image.permute(1, 2, 0).numpy())
        axes.set_title(title, fontsize=8, color=colors[position] if colors else "black")
        axes.axis("off")
    _save(figure, path)


def curves(path: Path, epochs: Sequence[dict[str, Any]]) -> None:
    """Loss and accuracy of training and validation over the epochs, from the lines of metrics.jsonl."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    at = [row["epoch"] for row in epochs]
    for position, name in enumerate(("loss", "accuracy")):
        axes = figure.add_subplot(1, 2, position + 1)
        for split, style in (("train", "--"), ("val", "-")):
            axes.plot(at, [row[f"{split}_{name}"] for row in epochs], style, marker="o", markersize=3, label=split)
        axes.set_xlabel("epoch")
        axes.set_title(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    write_atomically(path, lambda staging: figure.savefig(staging, format="png", dpi=110))
