"""README.md of a run folder: the model card, from the run's own facts."""

import html
import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from headstart.evaluation.statistics import wilson
from headstart.model.calibration import WRONGLY_FLAGGED
from headstart.runs.finished_run import RunFacts

PLACES = ("data.root", "model.weights", "runtime.bank")  # of which the card names no folder
LISTED_CLASSES = 20  # longer lists of classes are in the header of the model file


def model_card(facts: RunFacts) -> str:
    """Markdown with the metadata block that the Hugging Face hub reads: huggingface.co/docs/hub/model-cards."""
    info, val, summary = facts.info, facts.summary["val"], facts.summary
    spec, name = info.preprocess, facts.path.resolve().name
    classes, folder = _listed(info.classes), f"{name}-transformers"
    return f"""{_metadata(facts, name)}
# ResNet-18 for {classes}

An image classifier with {len(info.classes)} classes: torchvision's ResNet-18, strategy `{info.strategy}`, started from `{info.weights}`
weights and trained with headstart {info.versions["headstart"]}.

## Results

| on {val["n"]} validation images | value | 95 % interval | by |
|---|---|---|---|
{_result_rows(facts)}
{_chosen(facts)}

## Data

{_data(facts)}

## Recipe

{_recipe(facts)}

## Limits

{_limits(facts)}

## Use

Input: RGB, short side to {spec.resize_size} px ({spec.interpolation}, antialiased), central {spec.image_size} px square, divided by 255,
mean {list(spec.mean)}, std {list(spec.std)}. Output: logits of {len(info.classes)} classes, in this order: {classes}. All of it
stands in the header of `model.safetensors`, and `headstart` reads it there.

```
headstart predict {shlex.quote(name)} IMAGES...
```

In plain torchvision:

```python
from safetensors.torch import load_file
from torchvision.models import resnet18

model = resnet18(num_classes={len(info.classes)})
model.load_state_dict(load_file("model.safetensors"), strict=True)
model.eval()
```

With transformers, after `headstart export {shlex.quote(name)} --format transformers --out {shlex.quote(folder)}`:

```python
from transformers import pipeline

classify = pipeline("image-classification", model={folder!r})
```

Seed {summary["seed"]}, {summary["mixed_precision"]} precision on {summary["world_size"]} x {summary["device"]}; {_versions(summary)}.
"""


def _metadata(facts: RunFacts, name: str) -> str:
    """The YAML block. Strings are quoted as JSON, which is YAML whatever a class or a folder is called."""
    val = facts.summary["val"]
    data = str(facts.config.get("data", {}).get("root", "")).rstrip("/").rsplit("/", 1)[-1] or "images"
    metrics = [("accuracy", "Accuracy", val["accuracy"]), ("f1", "Macro F1", val["macro_f1"]), ("loss", "Log loss", val["loss"])]  # fmt: skip
    listed = "".join(
        f"    - type: {kind}\n      name: {title}\n      value: {value!r}\n"
        for kind, title, value in metrics
        if value is not None and math.isfinite(value)
    )
    return f"""---
library_name: headstart
pipeline_tag: image-classification
tags: [image-classification, resnet18, transfer-learning, headstart]
metrics: [accuracy]
model-index:
- name: {_quoted(name)}
  results:
  - task:
      type: image-classification
    dataset:
      type: imagefolder
      name: {_quoted(data)}
      split: validation
    metrics:
{listed}---"""


def _result_rows(facts: RunFacts) -> str:
    """A line per measure and per class, for as many classes as can be read."""
    val, told = facts.summary["val"], facts.summary.get("calibration")
    correct = f"**{val['accuracy']:.4f}** ({val['correct']} of {val['n']})"
    rows = [_row("accuracy", correct, val["accuracy_ci95"], "Wilson")]
    for place, name in enumerate(facts.classes if len(facts.classes) <= LISTED_CLASSES else ()):
        n = int((facts.labels == place).sum())
        hits = int(((facts.labels == place) & facts.is_correct).sum())
        if n:
            rows.append(
                _row(f"recall of {_escaped(name)}", f"{hits / n:.4f} ({hits} of {n})", wilson(hits, n), "Wilson")
            )
    by_class = "the classes' Wilson intervals (Zou and Donner)"
    rows += [
        _row("balanced accuracy", f"{val['balanced_accuracy']:.4f}", val.get("balanced_accuracy_ci95"), by_class),
        _row("macro F1", f"{val['macro_f1']:.4f}"),
        _row("log loss", f"{val['loss']:.4f}", val.get("loss_ci95"), "bootstrap"),
    ]
    if val.get("brier") is not None:
        rows.append(_row("Brier score", f"{val['brier']:.4f}", val.get("brier_ci95"), "bootstrap"))
    if val.get("ece") is not None and told is not None:
        scaled = f"the same with temperature {told['temperature']:.3f}, fitted on {told['n']} {told['fitted_on']}"
        rows += [_error_row("calibration error", val), _error_row(scaled, told)]
    return "".join(rows)


def _row(what: str, value: str, ends: Sequence[float] | None = None, method: str = "") -> str:
    """ends: of the interval, None if the run could not measure one."""
    return (
        f"| {what} | {value} | {ends[0]:.4f} to {ends[1]:.4f} | {method} |\n" if ends else f"| {what} | {value} | | |\n"
    )


def _error_row(what: str, measured: Any) -> str:
    """A calibration error has no interval, but what chance alone may make of it."""
    chance = measured.get("ece_by_chance95")
    beside = "" if chance is None else f"up to {chance:.4f} if the confidence is right"
    return f"| {what} | {measured['ece']:.4f} | {beside} | {'draws from the probabilities' if beside else ''} |\n"


def _chosen(facts: RunFacts) -> str:
    if facts.chosen_on_val:
        return "The epoch was chosen on these same images, so expect a little less on new ones."
    return "These images chose nothing."


def _data(facts: RunFacts) -> str:
    trained, skipped = facts.trained_on, facts.summary.get("skipped", [])
    lines = [
        f"{sum(trained.values())} training and {len(facts.labels)} validation images of {len(facts.classes)} classes"
        + (f", {len(skipped)} files not used" if skipped else "")
        + f"; `manifest.parquet` lists them by content, SHA-256 of it all `{facts.info.manifest_sha256}`."
    ]
    if len(facts.classes) <= LISTED_CLASSES:
        rows = [
            f"| {_escaped(name)} | {trained.get(name, 0)} | {int((facts.labels == place).sum())} |"
            for place, name in enumerate(facts.classes)
        ]
        lines += ["", "| class | training | validation |", "|---|---|---|", *rows]
    return "\n".join(lines)


def _recipe(facts: RunFacts) -> str:
    said = {
        key: PurePath(value).name if key in PLACES and isinstance(value, str) else value
        for key, value in facts.changed_keys().items()
    }
    changed = ", ".join(f"`{key}` {_plain(value)}" for key, value in said.items())
    return f"{changed or 'The defaults'}; everything else as by default, and all of it in `config.yaml`."


def _limits(facts: RunFacts) -> str:
    """What follows from the facts, and nothing else."""
    low, high = facts.summary["val"]["accuracy_ci95"]
    said = [
        f"The accuracy is known to {100 * (high - low) / 2:.1f} points either way, by the number of validation images alone.",
        "It holds for images like the validation images: the same kind of camera, place and subject.",
        f"Whatever an image shows, the answer is one of the {len(facts.classes)} classes.",
    ]
    open_set = facts.info.calibration and facts.info.calibration.open_set
    if open_set and open_set.limits[WRONGLY_FLAGGED] is not None:
        said[-1] = (
            f"The answer is one of the {len(facts.classes)} classes; whether the image is unlike all of the "
            f"{'training' if open_set.held_out else 'validation'} images is told beside it, and that is a warning and no proof."
        )
    few = [name for name in facts.classes if facts.trained_on.get(name, 0) < 20]
    if few:
        said.append(f"Fewer than 20 training images: {_listed(few)}.")
    unmeasured = [name for place, name in enumerate(facts.classes) if not (facts.labels == place).any()]
    if unmeasured:
        said.append(f"Not measured, for want of validation images: {_listed(unmeasured)}.")
    return "\n".join(f"- {sentence}" for sentence in said)


def _listed(names: "tuple[str, ...] | list[str]") -> str:
    more = f" and {len(names) - LISTED_CLASSES} more" if len(names) > LISTED_CLASSES else ""
    return ", ".join(map(_escaped, names[:LISTED_CLASSES])) + more


def _versions(summary: Any) -> str:
    return ", ".join(f"{name} {number}" for name, number in summary["versions"].items())


def _escaped(name: str) -> str:
    """A name as text on one line of Markdown, whatever is in it."""
    text = html.escape(" ".join(name.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
