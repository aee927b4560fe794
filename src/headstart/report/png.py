"""PNG files of the run folder: training views, validation predictions, curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from headstart.files import write_atomically

if TYPE_CHECKING:
    import torch

GOOD, BAD, INK = "#1a7f37", "#cf222e", "#1f2328"
COLUMNS, TILE_PX, GAP_PX, FONT_PX = 6, 224, 12, 15


def image_grid(
    path: Path, images: "Sequence[torch.Tensor]", titles: Sequence[str], colors: Sequence[str] | None = None
) -> None:
    """uint8 (3, S, S) images in a grid, a title of one or more lines under each."""
    colors = colors or [INK] * len(images)
    font = ImageFont.load_default(FONT_PX)
    line_px = FONT_PX + 4
    caption_px = line_px * max(title.count("\n") + 1 for title in titles) + 4
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    width, height = TILE_PX + GAP_PX, TILE_PX + caption_px + GAP_PX
    sheet = Image.new("RGB", (columns * width + GAP_PX, rows * height + GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (image, title, color) in enumerate(zip(images, titles, colors, strict=True)):
        left, top = GAP_PX + position % columns * width, GAP_PX + position // columns * height
        tile = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        sheet.paste(tile.resize((TILE_PX, TILE_PX)), (left, top))
        if color != INK:
            draw.rectangle((left - 3, top - 3, left + TILE_PX + 2, top + TILE_PX + 2), outline=color, width=3)
        for number, line in enumerate(title.split("\n")):
            draw.text((left, top + TILE_PX + 4 + number * line_px), _fit(line, font), fill=color, font=font)
    write_atomically(path, lambda staging: sheet.save(staging, format="PNG", compress_level=1))


def curves(path: Path, epochs: Sequence[dict[str, Any]]) -> None:
    """Loss and accuracy of training and validation over the epochs, from the lines of metrics.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

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
    FigureCanvasAgg(figure)
    write_atomically(path, lambda staging: figure.savefig(staging, format="png", dpi=110))


def selection(
    path: Path,
    *,
    l2: Sequence[float],
    losses: Sequence[float],
    errors: Sequence[float],
    accuracies: Sequence[float],
    chosen: float,
) -> None:
    """Cross-validated loss (with its standard error) and accuracy over the strengths; a line at the chosen one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for position, (name, values, bars) in enumerate((("log loss", losses, errors), ("accuracy", accuracies, None))):
        axes = figure.add_subplot(1, 2, position + 1)
        axes.errorbar(l2, values, yerr=bars, marker="o", markersize=3, capsize=2)
        axes.axvline(chosen, color=GOOD, linestyle="--", label=f"chosen: {chosen:.3g}")
        axes.set_xscale("log")
        axes.set_xlabel("probe.l2")
        axes.set_title(f"cross-validated {name}")
        axes.grid(alpha=0.3)
        axes.legend()
    FigureCanvasAgg(figure)
    write_atomically(path, lambda staging: figure.savefig(staging, format="png", dpi=110))


def _fit(line: str, font: Any) -> str:
    """The line, cut with an ellipsis to the width of a tile."""
    if font.getlength(line) <= TILE_PX:
        return line
    while line and font.getlength(line + "…") > TILE_PX:
        line = line[:-1]
    return line + "…"
