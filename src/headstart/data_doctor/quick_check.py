"""The quick check before every run: what a manifest alone shows to be wrong."""

import shlex
from collections import Counter

from headstart.data.samples import Manifest, summarize
from headstart.data_doctor.balance import Named, copies, thin_classes
from headstart.wording import listed


def quick_check(manifest: Manifest) -> list[str]:
    """At most five short lines on what a manifest alone shows to be wrong; none for a sound one. No file is read."""
    named = [(s.sha256, Named(s.path, s.split, s.label)) for s in manifest.samples]
    counts = Counter((s.split, s.label) for s in manifest.samples)
    # validation parts are small by design: only training images are counted
    found = copies(named) + thin_classes(Counter({key: n for key, n in counts.items() if key[0] == "train"}))
    lines = []
    for kind, sentence in _SENTENCES.items():
        ours = [finding for finding in found if finding.kind == kind]
        if ours:
            one = ours[0]
            example = f"{one.message}: {listed(one.paths)}" if len(one.paths) > 1 else f"{one.paths[0]}, {one.message}"
            more = f" and {len(ours) - 1} more" if len(ours) > 1 else ""
            lines.append(f"{sentence}: {example if kind != 'imbalance' else one.message}{more}")
    return [*lines, f"look closer: headstart data check {_named(manifest)}"] if lines else []


def _named(manifest: Manifest) -> str:
    """The data as the command line names them."""
    data = getattr(manifest.source, "data", None)  # of a source with columns, what the configuration says of them
    keys = ("image_column", "label_column", "split_column")
    columns = [(key, getattr(data, key)) for key in keys if data is not None and getattr(data, key) is not None]
    return " ".join([shlex.quote(manifest.root), *(f"--{key} {shlex.quote(name)}" for key, name in columns)])


_SENTENCES = {
    "duplicate_across_splits": "LEAK, trained and measured on the same image",
    "duplicate_across_classes": "the same image under different labels",
    "placeholder": "one file under many names",
    "near_empty_class": "nearly empty class",
    "imbalance": "imbalance, think of class weights or balanced sampling",
}


def describe_data(manifest: Manifest, *, pooled: bool = False) -> str:
    """What is trained and measured on, what is left out, and what the manifest alone shows to be wrong. pooled: the parts are one."""
    train, val = manifest.of("train"), manifest.of("val")
    images = f"{len(train) + len(val)} images" if pooled else f"{len(train)} training + {len(val)} validation images"
    line = f"{manifest.root}: {images}, {len(manifest.classes)} classes"
    if manifest.skipped:
        line += f"\nnot used, {len(manifest.skipped)}: {summarize(manifest.skipped)}"
    return "\n".join([line, *quick_check(manifest)])
