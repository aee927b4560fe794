"""The demo data: solar cells of the `elpv-dataset` package laid out as an image folder."""

import csv
import importlib.util
import os
import shutil
from collections import Counter
from pathlib import Path

from headstart.data.splits import stratified_split
from headstart.errors import InputError
from headstart.files import check_local
from headstart.wording import install_command

DEFECT_THRESHOLD = 0.5  # probabilities are 0, 1/3, 2/3 and 1; the published benchmark divides them in the middle
VAL_FRACTION = 0.25  # Deitsch et al. 2019: 75/25
FEWEST = 40  # some of each label and cell type in each split


def images_folder() -> Path:
    """Folder of the images of the optional package. Raises InputError if it is not installed."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise InputError(f"the demo data needs the package elpv-dataset; install it with: {install_command('demo')}")
    return Path(spec.origin).parent / "data"


def write_solar_cells(
    target: Path, *, seed: int = 0, images: int | None = None, val_fraction: float = VAL_FRACTION
) -> dict[str, int]:
    """Write the 2,624 electroluminescence images (Deitsch et al. 2019) to `target`; return the number per folder.

    `target/{train,val}/{functional,defective}/*.png`, stratified by label and cell type (mono, poly). Files are copied,
    never decoded. The folder appears complete or not at all; a complete one is not written again. images: number of
    images to draw, with the same shares of labels and cell types; None for all. Raises InputError if the optional
    package is missing, a number is out of range, or `target` contains something else.
    """
    source = images_folder()
    with (source / "labels.csv").open(encoding="utf-8") as lines:
        rows = [line.split() for line in lines if line.strip()]
    paths = [path for path, _, _ in rows]
    labels = ["defective" if float(probability) > DEFECT_THRESHOLD else "functional" for _, probability, _ in rows]
    strata = [f"{label}/{cell_type}" for label, (_, _, cell_type) in zip(labels, rows, strict=True)]
    if images is not None and not FEWEST <= images <= len(rows):
        raise InputError(f"--images is {images}; it must be from {FEWEST} to {len(rows)}")
    if not 0 < val_fraction < 1:
        raise InputError(f"--val_fraction is {val_fraction:g}; it must lie between 0 and 1, for example 0.25")
    if images is not None and images < len(rows):
        drawn = stratified_split(paths, strata, val_fraction=images / len(rows), seed=seed)
        kept = [number for number, part in enumerate(drawn) if part == "val"]
        rows = [rows[number] for number in kept]
        paths, labels, strata = ([column[number] for number in kept] for column in (paths, labels, strata))
    splits = stratified_split(paths, strata, val_fraction=val_fraction, seed=seed)
    plan = [
        (source / path, Path(split) / label / Path(path).name)
        for path, label, split in zip(paths, labels, splits, strict=True)
    ]
    counts = dict(Counter(str(relative.parent) for _, relative in plan))

    check_local(target, option="DIR")
    blocked = next((path for path in (target, *target.absolute().parents) if path.exists() and not path.is_dir()), None)
    if blocked is not None:
        raise InputError(f"{target}: {blocked} is a file, so no folder can be created there; name another place")
    if target.exists() and any(target.iterdir()):
        found = {str(p.relative_to(target)) for p in target.rglob("*.png")}
        if found != {str(relative) for _, relative in plan}:
            raise InputError(
                f"{target} exists and is not the demo data of seed {seed} with these options; name a new folder or "
                "remove it"
            )
        return counts
    staging = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        for original, relative in plan:
            (staging / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, staging / relative)
        with (staging / "labels.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["path", "defect_probability", "cell_type"])
            writer.writerows(
                (relative.as_posix(), probability, cell_type)
                for (_, relative), (_, probability, cell_type) in zip(plan, rows, strict=True)
            )
        if target.exists():
            target.rmdir()
        staging.rename(target)
    except OSError as error:
        raise InputError(f"{target}: {error.strerror}; name another place") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return counts
