"""Part of a large folder (data.limit): which images it is, chosen by their contents."""

import heapq
from collections import defaultdict
from collections.abc import Sequence

from headstart.data.read_images import ReadImage
from headstart.data.source import Skipped, Source
from headstart.errors import InputError


def limit_images(
    source: Source, images: Sequence[ReadImage], splits: Sequence[str], limit: int, *, val_too: bool
) -> tuple[list[ReadImage], list[str], list[Skipped]]:
    """At most `limit` training images, with their splits, and what is left out. val_too: whether the validation images
    are reduced by the same factor, with at least one of each class."""
    wanted = {"train": limit}
    places = {side: [place for place, split in enumerate(splits) if split == side] for side in ("train", "val")}
    labels = [image.entry.label for image in images]
    num_classes = len({*labels})
    if limit < num_classes:
        raise InputError(
            f"data.limit is {limit}, but {source.root} has {num_classes} classes, and each needs a training image; use "
            f"at least {num_classes}"
        )
    if val_too:
        wanted["val"] = max(num_classes, round(limit * len(places["val"]) / len(places["train"])))
    kept: list[int] = []
    counts = []
    for side, ours in places.items():
        most = min(wanted.get(side, len(ours)), len(ours))
        contents = [images[place].sha256 for place in ours]
        kept += [ours[i] for i in limited(contents, [labels[place] for place in ours], limit=most)]
        if most < len(ours):
            what = "training" if side == "train" else "validation"
            counts.append(f"{len(ours) - most:,} of {len(ours):,} {what} images")
    left_out = [Skipped(f"data.limit {limit}", " and ".join(counts))] if counts else []
    return [images[place] for place in kept], [splits[place] for place in kept], left_out


def limited(contents: Sequence[str], labels: Sequence[str], *, limit: int) -> list[int]:
    """The indices, in order, of at most `limit` images with the same share of each class and at least one of it.

    The choice depends on the contents (sha256) alone, and a smaller limit chooses a part of what a larger one chooses.
    Raises ValueError if the limit is below the number of classes."""
    members: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(contents)), key=lambda index: (contents[index], labels[index])):
        members[labels[index]].append(index)
    if limit < len(members):
        raise ValueError(f"{limit} images for {len(members)} classes")
    # the first image of each class comes first, then each class in equal steps from 0 to 1
    places = [
        (rank > 0, (rank + 0.5) / len(group), contents[index], labels[index], index)
        for group in members.values()
        for rank, index in enumerate(group)
    ]
    return sorted(place[-1] for place in heapq.nsmallest(limit, places))
