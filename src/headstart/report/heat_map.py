"""The confusion matrix of many classes as a picture: a cell is darker the larger its share of the row is."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from headstart.wording import shortened

LEVELS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
"""Opacities of the colours; a cell has the one that its share reaches at least in part."""
SIDE, LEAST, MOST = 840, 10, 26  # px: of the cells together, of one cell at least and at most
LETTER, LONGEST = 5.2, 22  # px per letter of a name; letters of a name that are drawn


@dataclass(frozen=True)
class HeatMap:
    """numbers: the names and counts, which the script of the page shows for the cell under the pointer."""

    svg: Markup
    numbers: dict[str, Any]
    levels: tuple[float, ...] = LEVELS


def heat_map(confusion: np.ndarray, classes: tuple[str, ...]) -> HeatMap:
    """confusion: (C, C) int, rows: true class, columns: predicted class."""
    num_classes = len(classes)
    cell = min(MOST, max(LEAST, SIDE // num_classes))
    names = [shortened(name, LONGEST) for name in classes]
    space = 30 + LETTER * max(map(len, names))  # for the names, and for the title of an axis
    side = cell * num_classes
    parts = [f'<g class="cells"><rect class="ground" x="{space:.0f}" y="{space:.0f}" width="{side}" height="{side}"/>']
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    level = np.searchsorted(LEVELS, shares)
    for kind, diagonal in (("right", True), ("wrong", False)):
        for number, opacity in enumerate(LEVELS):
            places = np.argwhere((level == number) & (shares > 0) & (np.eye(num_classes, dtype=bool) == diagonal))
            path = "".join(
                f"M{space + column * cell:.0f} {space + row * cell:.0f}h{cell}v{cell}h-{cell}z"
                for row, column in places.tolist()
            )
            if path:
                parts.append(f'<path class="{kind}" opacity="{opacity}" d="{path}"/>')
    parts.append("</g>")
    for number, name in enumerate(names):
        middle = space + (number + 0.5) * cell
        text = escape(name)
        parts.append(f'<text x="{space - 4:.0f}" y="{middle + 3:.1f}" text-anchor="end">{text}</text>')
        parts.append(f'<text transform="translate({middle + 3:.1f} {space - 4:.0f}) rotate(-90)">{text}</text>')
    middle = space + side / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="14" text-anchor="middle">Predicted class</text>')
    parts.append(
        f'<text class="axis" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">True class</text>'
    )
    size = math.ceil(space + side + 8)
    start = (
        f'<svg class="heat-map" viewBox="0 0 {size} {size}" width="{size}" height="{size}" role="img" aria-label='
        f'"Confusion matrix of {num_classes} classes: rows are true classes, columns are predicted classes">'
    )
    return HeatMap(Markup(f"{start}{''.join(parts)}</svg>"), {"names": list(classes), "counts": confusion.tolist()})
