"""The quick check before every run: the problems that a manifest shows without reading a file."""

import shlex
from collections import Counter
from typing import TYPE_CHECKING

from headstart.config import DataConfig
from headstart.data.samples import Manifest
from headstart.data.source import summarize
from headstart.data_doctor.balance import Named, alike_names, copies, thin_classes
from headstart.data_doctor.mirrored_classes import AXES, warning
from headstart.messages import warn
from headstart.wording import listed, plural

if TYPE_CHECKING:
    from accelerate import Accelerator


def quick_check(manifest: Manifest) -> list[str]:
    """At most seven short lines; none if no problem is found."""
    named = [(s.sha256, Named(s.path, s.split, s.label)) for s in manifest.samples]
    counts = Counter((s.split, s.label) for s in manifest.samples)
    # validation sets are small by design: only training images are counted
    found = copies(named) + alike_names(file for _, file in named)
    found += thin_classes(Counter({key: n for key, n in counts.items() if key[0] == "train"}))
    lines = []
    for kind, sentence in _SENTENCES.items():
        ours = [finding for finding in found if finding.kind == kind]
        if ours:
            one = ours[0]
            example = f"{one.message}: {listed(one.paths)}" if len(one.paths) > 1 else f"{one.paths[0]}, {one.message}"
            example = one.message if kind in ("imbalance", "alike_names") else example
            more = f" and {len(ours) - 1} more" if len(ours) > 1 else ""
            lines.append(f"{sentence}: {example}{more}")
    return [*lines, f"details: headstart data check {_arguments(manifest)}"] if lines else []


def _arguments(manifest: Manifest) -> str:
    data = getattr(manifest.source, "data", None)  # the configuration, in sources with columns
    keys = ("image_column", "label_column", "split_column")
    columns = [(key, getattr(data, key)) for key in keys if data is not None and getattr(data, key) is not None]
    return " ".join([shlex.quote(manifest.root), *(f"--{key} {shlex.quote(name)}" for key, name in columns)])


_SENTENCES = {
    "duplicate_across_splits": "LEAK, the same image in train and val",
    "duplicate_across_classes": "the same image under different labels",
    "placeholder": "one file under many names",
    "alike_names": "names of classes",
    "near_empty_class": "nearly empty class",
    "imbalance": "imbalance, think of class weights or balanced sampling",
}


def warn_of_mirrored_classes(accelerator: "Accelerator", manifest: Manifest, data: DataConfig) -> None:
    """Log a warning, in the main process only, if a flip of the training images makes two classes equal."""
    axes = [axis for axis in AXES if getattr(data, axis)]
    if not axes or not accelerator.is_main_process:
        return
    samples = manifest.of("train")
    blocks = samples.column("block") or [""] * len(samples)
    paths: dict[str, list[str]] = {}
    for _, path, label in sorted(zip(blocks, samples.column("path"), samples.column("label"), strict=True)):
        paths.setdefault(label, []).append(path)
    if found := warning(manifest.source, paths, axes=axes):
        warn(found)


def describe_data(manifest: Manifest) -> str:
    """The images and classes of a run, the skipped files, and the problems that the manifest shows."""
    train, val = manifest.of("train"), manifest.of("val")
    images = f"{len(train)} training + {plural(len(val), 'validation image')}"
    line = f"{manifest.root}: {images}, {plural(len(manifest.classes), 'class')}"
    if manifest.split_by:
        line += f"; {manifest.split_by}"
    if manifest.has_test:
        line += f"\n{_describe_test(manifest.num_test)}"
    if manifest.skipped:
        line += f"\nnot used, {len(manifest.skipped)}: {summarize(manifest.skipped)}"
    return "\n".join([line, *quick_check(manifest)])


def _describe_test(number: int | None) -> str:
    """number: of the images of the test set that have a class; None if it is unknown."""
    if number == 0:
        return "the test set is held out; it has no classes, so it can be classified, but not evaluated"
    images = "test images" if number is None else plural(number, "test image")
    are = "is" if number == 1 else "are"
    return f"{images} {are} held out; evaluate the model on them once, at the end, with headstart evaluate RUN"
