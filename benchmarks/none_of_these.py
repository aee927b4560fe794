"""How many off-topic images a model calls "none of these", and how many of its own it calls so by mistake.

    python benchmarks/none_of_these.py runs/ants runs/solar

Each run is shown 80 drawn images (noise, grey noise, single colours, gradients, stripes, text, shapes, blurred blobs)
and the validation images of the other runs. The stored limits are compared with two other scores, whose limits are
chosen the same way: the largest probability, and the shrunk Mahalanobis distance to the nearest class (Lee et al. 2018,
with the shrinkage of Ledoit and Wolf 2004). "Own, new" is measured on halves of the validation images whose other
halves chose the limit, on the average of 100 splits.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

import headstart
from headstart.model.conformal import upper_limit
from headstart.model.open_set import SHARES, fit_open_set

SPLITS = 100
KINDS = ("noise", "grey noise", "single colour", "gradient", "stripes", "text", "shapes", "blobs")


def off_topic(*, per_kind: int, seed: int, side_px: int = 300) -> list[tuple[str, Image.Image]]:
    """(kind, RGB image), `per_kind` of each of KINDS."""
    rng = np.random.default_rng(seed)
    return [(kind, _draw(kind, rng, side_px)) for _ in range(per_kind) for kind in KINDS]


def _draw(kind: str, rng: np.random.Generator, side: int) -> Image.Image:
    y, x = np.mgrid[0:side, 0:side]
    turned = (lambda angle: np.cos(angle) * x + np.sin(angle) * y)(rng.uniform(0, 2 * np.pi))
    if kind == "noise":
        return _image(rng.integers(0, 256, (side, side, 3)))
    if kind == "grey noise":
        return _image(np.repeat(rng.integers(0, 256, (side, side, 1)), 3, axis=2))
    if kind == "single colour":
        return _image(np.ones((side, side, 3)) * rng.integers(0, 256, 3))
    if kind == "gradient":
        share = ((turned - turned.min()) / np.ptp(turned))[..., None]
        return _image(rng.integers(0, 256, 3) * share + rng.integers(0, 256, 3) * (1 - share))
    if kind == "stripes":
        waves = np.sign(np.sin(turned * rng.uniform(0.05, 0.5)))[..., None]
        return _image(rng.integers(0, 256, 3) * (waves > 0) + rng.integers(0, 256, 3) * (waves <= 0))
    if kind == "blobs":
        return _image(rng.integers(0, 256, (8, 8, 3))).resize((side, side), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (side, side), "white" if kind == "text" else _colour(rng))
    draw = ImageDraw.Draw(sheet)
    for number in range(14 if kind == "text" else 8):
        if kind == "text":
            letters = "".join(chr(97 + rng.integers(26)) if rng.random() > 0.15 else " " for _ in range(45))
            draw.text((10, 10 + number * 20), letters, fill="black")
        else:
            left, right = sorted(rng.integers(0, side, 2).tolist())
            top, bottom = sorted(rng.integers(0, side, 2).tolist())
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((left, top, right + 1, bottom + 1), fill=_colour(rng))
    return sheet


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(rng.integers(0, 256, 3).tolist())


class Run:
    """A finished run, and the validation images that it was measured on."""

    def __init__(self, folder: str) -> None:
        self.name = folder
        self.model = headstart.load(folder)
        root = Path(yaml.safe_load(Path(folder, "config.yaml").read_text())["data"]["root"])
        rows = [row for row in pq.read_table(Path(folder, "manifest.parquet")).to_pylist() if row["split"] == "val"]
        self.paths = [root / row["path"] for row in rows]
        self.labels = np.array([self.model.classes.index(row["label"]) for row in rows])

    def look(self, images: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (n, 512), largest probabilities (n,), distances (n,)."""
        found = self.model.predict(images, embeddings=True, calibrated=False)
        return (
            np.stack([row.embedding for row in found]).astype(np.float64),
            np.array([row.probability for row in found]),
            np.array([row.distance for row in found]),
        )


def mahalanobis(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class means (C, d), and the inverse of the shrunk covariance within the classes (d, d)."""
    means = np.stack([features[labels == label].mean(axis=0) for label in np.unique(labels)])
    centred = features - means[np.searchsorted(np.unique(labels), labels)]
    count, width = centred.shape
    covariance = centred.T @ centred / count
    level = np.trace(covariance) / width
    distance = ((covariance - level * np.eye(width)) ** 2).sum()
    noise = ((centred**2).sum(axis=1) ** 2).sum() / count**2 - (covariance**2).sum() / count
    share = min(noise, distance) / distance
    return means, np.linalg.inv((1 - share) * covariance + share * level * np.eye(width))


def to_nearest(model: tuple[np.ndarray, np.ndarray], features: np.ndarray) -> np.ndarray:
    """(n,) squared distances to the nearest class."""
    means, inverse = model
    away = features[:, None] - means[None]
    return ((away @ inverse) * away).sum(axis=2).min(axis=1)


def in_parts(features: np.ndarray, labels: np.ndarray, parts: int = 40) -> np.ndarray:
    """(n,) Mahalanobis distances, each by a model without it and a fortieth of the others."""
    part, found = np.arange(len(features)) % parts, np.empty(len(features))
    for number in range(parts):
        out = part == number
        found[out] = to_nearest(mahalanobis(features[~out], labels[~out]), features[out])
    return found


def wrongly_flagged(run: Run, features: np.ndarray) -> np.ndarray:
    """For each of SHARES the share of validation images flagged that did not choose the limit."""
    rng, found = np.random.default_rng(0), []
    open_set = run.model.info.calibration.open_set
    for _ in range(SPLITS):
        order = rng.permutation(len(features))
        half, rest = order[: len(order) // 2], order[len(order) // 2 :]
        others = (open_set.reference, np.zeros(len(open_set.reference), dtype=int)) if open_set.held_out else None
        fitted = fit_open_set(features[half], run.labels[half], others=others)
        distances = fitted.distance(features[rest])
        limits = [math.inf if limit is None else limit for limit in fitted.limits.values()]
        found.append([(distances > limit).mean() for limit in limits])
    return np.mean(found, axis=0)


def report(run: Run, others: list[Run], console: Console) -> None:
    own, own_top, _ = run.look(run.paths)
    drawn = off_topic(per_kind=10, seed=1)
    groups = {"drawn": run.look([image for _, image in drawn])}
    groups |= {other.name: run.look(other.paths) for other in others}
    open_set = run.model.info.calibration.open_set
    by_classes, own_by_classes = mahalanobis(own, run.labels), in_parts(own, run.labels)
    console.print(
        f"\n{run.name}: {len(run.paths)} validation images, distance to neighbour {open_set.neighbour} of "
        f"{len(open_set.reference)} {'training' if open_set.held_out else 'validation'} images"
    )
    table = Table(
        "share allowed",
        "own, new",
        *(f"{name}: {score}" for name in groups for score in ("neighbours", "Mahalanobis", "probability")),
    )
    for share, mistaken in zip(SHARES, wrongly_flagged(run, own), strict=True):
        limits = [open_set.limits[share], upper_limit(own_by_classes, share), upper_limit(1 - own_top, share)]
        limits = [math.inf if limit is None else limit for limit in limits]
        row = [f"{share:.0%}", f"{mistaken:.1%}"]
        for features, top, distances in groups.values():
            scores = (distances, to_nearest(by_classes, features), 1 - top)
            row += [f"{(score > limit).mean():.0%}" for score, limit in zip(scores, limits, strict=True)]
        table.add_row(*row)
    console.print(table)
    limit = open_set.limits[0.05]
    by_kind = {kind: [] for kind in KINDS}
    for (kind, _), distance in zip(drawn, groups["drawn"][2], strict=True):
        by_kind[kind].append(distance > limit)
    console.print("at 5 %, of 10 each: " + ", ".join(f"{kind} {sum(hits)}" for kind, hits in by_kind.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, whose data is where their config.yaml says")
    runs = [Run(folder) for folder in parser.parse_args().runs]
    console = Console(width=200, highlight=False)
    for run in runs:
        report(run, [other for other in runs if set(other.model.classes) != set(run.model.classes)], console)


if __name__ == "__main__":
    main()
