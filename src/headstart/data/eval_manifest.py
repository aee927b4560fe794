"""The images on which a finished model is evaluated, labelled by the model's own classes."""

from collections.abc import Callable, Sequence
from itertools import compress

from PIL import Image

from headstart.data.classes import refuse_nothing
from headstart.data.decode import decode
from headstart.data.manifest import refuse_or_skip, samples_of
from headstart.data.read_images import read_images
from headstart.data.samples import Manifest
from headstart.data.source import PARTS, Entry, Scan, Skipped, Source, same_name
from headstart.errors import InputError


def build_eval_manifest(
    source: Source,
    *,
    classes: Sequence[str],
    on_bad_file: str,
    trained_on: Callable[[str, str], bool],
    split: str | None = None,
    resplit: bool = False,
    num_threads: int | None = None,
    decoder: Callable[[bytes], Image.Image] = decode,
) -> Manifest:
    """The images of `source` on which to evaluate a finished model, labelled by the model's own classes.

    split: None for the one that the source holds out (val, else test), or all images if it holds out none. resplit: the
    model's run split train and val itself, so the splits of the source do not tell what it was trained on. Images for
    which `trained_on(sha256, path)` is true are not evaluated but listed as skipped. Raises InputError as
    build_manifest does, and for a class that the model does not know.
    """
    scan = source.scan()
    parts = _evaluated_splits(source, scan, split, resplit=resplit)
    entries = [entry for entry in scan.entries if entry.split in parts]
    refuse_nothing(source, entries, scan)
    known = {same_name(name): name for name in classes}  # models of earlier versions have other spellings
    unknown = sorted({entry.label for entry in entries} - known.keys())
    if unknown and on_bad_file == "refuse":
        raise InputError(
            f"class {unknown[0]!r} of {source.root} is not a class of the model ({', '.join(classes)}); remove it, "
            "or leave it out with --on_bad_file skip"
        )
    left_out = [Skipped(label, "not a class of the model; left out") for label in unknown]

    def wanted(entry: Entry) -> bool:
        return entry.split in parts and entry.label in known

    images, bad = read_images(source, scan, wanted=wanted, decoder=decoder, num_threads=num_threads)
    refuse_or_skip(source, bad, on_bad_file=on_bad_file, option="--on_bad_file")
    seen = [trained_on(image.sha256, image.entry.path) for image in images]
    left_out += bad + [Skipped(i.entry.path, "the model was trained on it") for i in compress(images, seen)]
    fresh = list(compress(images, (not was_seen for was_seen in seen)))
    if not fresh:
        raise InputError(f"{source.root} has no images that the model was not trained on; name other images")
    samples = samples_of(source, fresh, ["val"] * len(fresh), known)
    return Manifest(source, tuple(classes), samples, tuple([*scan.skipped, *left_out]))


def _evaluated_splits(source: Source, scan: Scan, split: str | None, *, resplit: bool) -> set[str | None]:
    there = {entry.split for entry in scan.entries}
    if split is not None:
        if split == "test" and split not in there and scan.has_test:
            raise InputError(
                f"the test set of {source.root} has no images with a class; name labelled images with --data, or "
                "classify it with headstart predict"
            )
        if split not in there:
            has = ", ".join(sorted(part for part in there if part))
            raise InputError(
                f"{source.root} has no split {split!r}; its splits are: {has or 'none'}; name labelled images with "
                f"--data{', or another --split' if has else ''}"
            )
        return {split}
    if resplit and there & PARTS:
        return set(PARTS)
    return next(({part} for part in ("val", "test") if part in there), there)
