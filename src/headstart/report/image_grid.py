"""Grids of images with titles, as PNG files of the run folder: train_batch.png and val_predictions.png."""

import json
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from headstart.files import write_atomically
from headstart.wording import shortened

if TYPE_CHECKING:
    import torch

GOOD, BAD, INK = "#1a7f37", "#cf222e", "#1f2328"
COLUMNS, TILE_PX, GAP_PX, FONT_PX = 6, 224, 12, 15
_TITLES = "titles"  # key of the PNG text with the titles, JSON


def image_grid(
    path: Path, images: "Sequence[torch.Tensor]", titles: Sequence[str], colors: Sequence[str] | None = None
) -> None:
    """Write uint8 (3, S, S) images as one PNG: a grid with a title of one or more lines under each image.

    Titles are drawn in ASCII. An image whose color is not INK gets a frame of that color. The file also holds the
    titles as text, for `tiles_of`.
    """
    colors = colors or [INK] * len(images)
    font = ImageFont.load_default(FONT_PX)
    line_px = FONT_PX + 4
    caption_px = line_px * max(title.count("\n") + 1 for title in titles) + 4
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    width, height = TILE_PX + GAP_PX, TILE_PX + caption_px + GAP_PX
    sheet = Image.new("RGB", (columns * width + GAP_PX, rows * height + GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, title, color) in enumerate(zip(images, titles, colors, strict=True)):
        left, top = GAP_PX + index % columns * width, GAP_PX + index // columns * height
        tile = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        sheet.paste(tile.resize((TILE_PX, TILE_PX)), (left, top))
        if color != INK:
            draw.rectangle((left - 3, top - 3, left + TILE_PX + 2, top + TILE_PX + 2), outline=color, width=3)
        for number, line in enumerate(title.split("\n")):
            text = _cut(_as_ascii(line), font)
            draw.text((left, top + TILE_PX + 4 + number * line_px), text, fill=color, font=font)
    info = PngImagePlugin.PngInfo()
    info.add_text(_TITLES, json.dumps(list(titles)))
    write_atomically(path, lambda staging: sheet.save(staging, format="PNG", compress_level=1, pnginfo=info))


def tiles_of(path: Path) -> list[tuple[str, Image.Image]]:
    """The titles and RGB images of a grid. A file without titles, as older versions wrote it, is one image."""
    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
        titles = json.loads(getattr(opened, "text", {}).get(_TITLES, "[]"))
    if not titles:
        return [("", sheet)]
    columns = min(COLUMNS, len(titles))
    height = (sheet.height - GAP_PX) // math.ceil(len(titles) / columns)
    places = [divmod(number, columns) for number in range(len(titles))]
    corners = [(GAP_PX + column * (TILE_PX + GAP_PX), GAP_PX + row * height) for row, column in places]
    tiles = [sheet.crop((left, top, left + TILE_PX, top + TILE_PX)) for left, top in corners]
    return list(zip(titles, tiles, strict=True))


def _as_ascii(text: str) -> str:
    """Accents are dropped and other characters escaped: Pillow's own font has glyphs for little more than ASCII."""
    plain = [unicodedata.normalize("NFKD", character)[0] for character in text]
    kept = [letter if letter.isascii() else character for letter, character in zip(plain, text, strict=True)]
    return "".join(kept).encode("ascii", "backslashreplace").decode()


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The line, with an ellipsis in the middle if it is wider than a tile."""
    limits = range(len(line), 0, -1)
    return next(cut for limit in limits if font.getlength(cut := shortened(line, limit)) <= TILE_PX) if line else line
