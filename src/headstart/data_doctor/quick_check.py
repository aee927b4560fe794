"""The quick check before every run: the problems that a manifest shows without reading a file."""

import shlex
from collections import Counter

from headstart.data.samples import Manifest
from headstart.data.source import summarize
from headstart.data_doctor.balance import Named, copies, thin_classes
from headstart.wording import listed, plural


def quick_check(manifest: Manifest) -> list[str]:
    """At most six short lines; none if no problem is found."""
    named = [(s.sha256, Named(s.path, s.split, s.label)) for s in manifest.samples]
    counts = Counter((s.split, s.label) for s in manifest.samples)
    # validation sets are small by design: only training images are counted
    found = copies(named) + thin_classes(Counter({key: n for key, n in counts.items() if key[0] == "train"}))
    lines = []
    for kind, sentence in _SENTENCES.items():
        ours = [finding for finding in found if finding.kind == kind]
        if ours:
            one = ours[0]
            example = f"{one.message}: {listed(one.paths)}" if len(one.paths) > 1 else f"{one.paths[0]}, {one.message}"
            more = f" and {len(ours) - 1} more" if len(ours) > 1 else ""
            lines.append(f"{sentence}: {example if kind != 'imbalance' else one.message}{more}")
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
    "near_empty_class": "nearly empty class",
    "imbalance": "imbalance, think of class weights or balanced sampling",
}


def describe_data(manifest: Manifest) -> str:
    """The images and classes of a run, the skipped files, and the problems that the manifest shows."""
    train, val = manifest.of("train"), manifest.of("val")
    images = f"{len(train)} training + {plural(len(val), 'validation image')}"
    line = f"{manifest.root}: {images}, {plural(len(manifest.classes), 'class')}"
    if manifest.split_by:
        line += f"; {manifest.split_by}"
    if manifest.skipped:
        line += f"\nnot used, {len(manifest.skipped)}: {summarize(manifest.skipped)}"
    return "\n".join([line, *quick_check(manifest)])
